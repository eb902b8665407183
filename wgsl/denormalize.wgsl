// `denormalize`: forecasts back on the scale of their window. One invocation an element of
// `[rows, horizon, width]`.

struct Params {
    x: u32,
    y: u32,
    count: u32,
    // Elements of a row, and of a position.
    row: u32,
    width: u32,
    // Shift of (row 0, channel 0); elements to the next row, the next channel, and to the scale.
    statistics: u32,
    statistics_row: u32,
    statistics_channel: u32,
    statistics_scale: u32,
    // Outputs a channel, and the first channel: with one channel for all, outputs is `width`.
    outputs: u32,
    channel: u32,
    weight: u32,
    bias: u32,
    eps: f32,
}

override AFFINE: u32 = 0u;
override ASINH: u32 = 0u;

@group(0) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = group_number(group, groups) * 64u + lane;
    if i >= params.count {
        return;
    }
    let k = params.channel + (i % params.width) / params.outputs;
    let at = params.statistics + (i / params.row) * params.statistics_row
        + k * params.statistics_channel;
    var y = load(params.x + i);
    if AFFINE == 1u {
        y = (y - weights[params.bias + k]) / (weights[params.weight + k] + params.eps);
    }
    if ASINH == 1u {
        y = sinh_of(y);
    }
    store(params.y + i, y * load(at + params.statistics_scale) + load(at));
}
