// `norm`: layer, group, RMS and batch normalisation of the last axis. One workgroup a group of a
// row (a row is one group but for `Group`).

struct Params {
    x: u32,
    y: u32,
    rows: u32,
    width: u32,
    // Groups a row, and elements a group.
    groups: u32,
    size: u32,
    weight: u32,
    bias: u32,
    mean: u32,
    variance: u32,
    eps: f32,
    weight_offset: f32,
}

// 0 layer and group, 1 RMS, 2 batch.
override KIND: u32 = 0u;
override WEIGHT: u32 = 0u;
override BIAS: u32 = 0u;

@group(0) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let number = group_number(group, groups);
    let row = number / params.groups;
    if row >= params.rows {
        return;
    }
    let first = (number % params.groups) * params.size;
    let x = params.x + row * params.width + first;
    let n = f32(params.size);
    var mean = 0.0;
    var factor = 1.0;
    if KIND == 0u {
        var sum = 0.0;
        for (var i = lane; i < params.size; i += LANES) {
            sum += load(x + i);
        }
        mean = sum_all(lane, sum) / n;
    }
    if KIND != 2u {
        var squares = 0.0;
        for (var i = lane; i < params.size; i += LANES) {
            let d = load(x + i) - mean;
            squares += d * d;
        }
        factor = 1.0 / sqrt(sum_all(lane, squares) / n + params.eps);
    }
    for (var i = lane; i < params.size; i += LANES) {
        let feature = first + i;
        var value = load(x + i);
        if KIND == 2u {
            value = (value - weights[params.mean + feature])
                / sqrt(weights[params.variance + feature] + params.eps);
        } else {
            value = (value - mean) * factor;
        }
        if WEIGHT == 1u {
            value *= weights[params.weight + feature] + params.weight_offset;
        }
        if BIAS == 1u {
            value += weights[params.bias + feature];
        }
        store(params.y + row * params.width + feature, value);
    }
}
