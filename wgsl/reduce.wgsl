// Sums and extremes over a workgroup of 64, by a tree whose shape is fixed, so that their bits are.
// Not a kernel. Every invocation must call, and all get the result.

const LANES: u32 = 64u;

var<workgroup> lanes: array<f32, 64>;

fn sum_all(lane: u32, x: f32) -> f32 {
    workgroupBarrier();
    lanes[lane] = x;
    workgroupBarrier();
    for (var n = 32u; n > 0u; n = n / 2u) {
        if lane < n {
            lanes[lane] = lanes[lane] + lanes[lane + n];
        }
        workgroupBarrier();
    }
    return lanes[0];
}

// NaN is passed over; a sum of the same numbers keeps it.
fn max_all(lane: u32, x: f32) -> f32 {
    workgroupBarrier();
    lanes[lane] = x;
    workgroupBarrier();
    for (var n = 32u; n > 0u; n = n / 2u) {
        if lane < n {
            let a = lanes[lane];
            let b = lanes[lane + n];
            lanes[lane] = select(a, b, b > a);
        }
        workgroupBarrier();
    }
    return lanes[0];
}
