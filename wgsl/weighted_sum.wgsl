// `weighted_sum`: weights times vectors, the weights through a softmax first where asked. One
// workgroup a row of `[outer, n, d]`.

struct Params {
    w: u32,
    x: u32,
    y: u32,
    rows: u32,
    n: u32,
    d: u32,
}

override SOFTMAX: u32 = 0u;

@group(0) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = group_number(group, groups);
    if row >= params.rows {
        return;
    }
    let w = params.w + row * params.n;
    var largest = 0.0;
    var sum = 1.0;
    if SOFTMAX == 1u {
        largest = -3.4028234e38;
        for (var i = lane; i < params.n; i += LANES) {
            let value = load(w + i);
            largest = select(largest, value, value > largest);
        }
        largest = max_all(lane, largest);
        sum = 0.0;
        for (var i = lane; i < params.n; i += LANES) {
            sum += exp(load(w + i) - largest);
        }
        sum = sum_all(lane, sum);
    }
    for (var k = lane; k < params.d; k += LANES) {
        var y = 0.0;
        for (var i = 0u; i < params.n; i++) {
            let x = load(params.x + (row * params.n + i) * params.d + k);
            if SOFTMAX == 1u {
                y += exp(load(w + i) - largest) / sum * x;
            } else {
                y += load(w + i) * x;
            }
        }
        store(params.y + row * params.d + k, y);
    }
}
