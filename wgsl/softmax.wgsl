// `unary` softmax: of each row, the maximum subtracted first. One workgroup a row.

struct Params {
    x: u32,
    y: u32,
    rows: u32,
    width: u32,
}

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
    let x = params.x + row * params.width;
    let y = params.y + row * params.width;
    var largest = -3.4028234e38;
    for (var i = lane; i < params.width; i += LANES) {
        let value = load(x + i);
        largest = select(largest, value, value > largest);
    }
    largest = max_all(lane, largest);
    var sum = 0.0;
    for (var i = lane; i < params.width; i += LANES) {
        sum += exp(load(x + i) - largest);
    }
    sum = sum_all(lane, sum);
    for (var i = lane; i < params.width; i += LANES) {
        store(y + i, exp(load(x + i) - largest) / sum);
    }
}
