// `norm` of whole rows, layer or RMS, whose widths are multiples of four: sixteen invocations have
// a row, each with every sixteenth four of it in registers. `norm` has the other kinds and widths.
//
// On an H200 through Vulkan 65,536 rows of 128 take 31 µs (`norm`: 118), 8,192 of 768 37 (40).

// As in `norm`.
struct Params {
    x: u32,
    y: u32,
    rows: u32,
    width: u32,
    groups: u32,
    size: u32,
    weight: u32,
    bias: u32,
    mean: u32,
    variance: u32,
    eps: f32,
    weight_offset: f32,
}

// 0 layer, 1 RMS.
override KIND: u32 = 0u;
override WEIGHT: u32 = 0u;
override BIAS: u32 = 0u;
// Fours of an invocation.
override FOURS: u32 = 1u;

@group(0) @binding(0) var<uniform> params: Params;

// Rows of a workgroup, invocations of a row.
const ROWS: u32 = 8u;
const SHARE: u32 = 16u;

var<workgroup> parts: array<f32, 128>;

// The sum over the invocations of a row, in their order.
fn sum_of_row(row: u32, part: u32, x: f32) -> f32 {
    workgroupBarrier();
    parts[row * SHARE + part] = x;
    workgroupBarrier();
    var sum = 0.0;
    //# for i in 16
    sum += parts[row * SHARE + $iu];
    //# end
    return sum;
}

fn weights4(i: u32) -> vec4<f32> {
    return vec4(weights[i], weights[i + 1u], weights[i + 2u], weights[i + 3u]);
}

@compute @workgroup_size(128)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let own = lane / SHARE;
    let part = lane % SHARE;
    let row = group_number(group, groups) * ROWS + own;
    let fours = params.width / 4u;
    // The last row stands in for those beyond it, which are not stored.
    let x = params.x / 4u + min(row, params.rows - 1u) * fours;
    let n = f32(params.width);
    var sum = 0.0;
    //# for f in FOURS
    let at_$f = $fu * SHARE + part;
    var x_$f = vec4(0.0);
    if at_$f < fours {
        x_$f = arena[x + at_$f];
    }
    sum += dot(x_$f, vec4(1.0));
    //# end
    var mean = 0.0;
    if KIND == 0u {
        mean = sum_of_row(own, part, sum) / n;
    }
    var squares = 0.0;
    //# for f in FOURS
    let d_$f = x_$f - mean;
    if at_$f < fours {
        squares += dot(d_$f, d_$f);
    }
    //# end
    let factor = 1.0 / sqrt(sum_of_row(own, part, squares) / n + params.eps);
    if row < params.rows {
        let y = params.y / 4u + row * fours;
        //# for f in FOURS
        if at_$f < fours {
            var y_$f = d_$f * factor;
            if WEIGHT == 1u {
                y_$f *= weights4(params.weight + 4u * at_$f) + params.weight_offset;
            }
            if BIAS == 1u {
                y_$f += weights4(params.bias + 4u * at_$f);
            }
            arena[y + at_$f] = y_$f;
        }
        //# end
    }
}
