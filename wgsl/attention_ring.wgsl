// After `attention` over a ring: this run's visible rows into the store, at their positions modulo
// the capacity, and how many rows were ever written. One workgroup a row of the batch.

struct Params {
    // Prepared keys and values of this run, with row and position strides.
    keys: u32,
    keys_row: u32,
    keys_step: u32,
    values: u32,
    values_row: u32,
    values_step: u32,
    rows: u32,
    time: u32,
    mask: u32,
    ring_keys: u32,
    ring_values: u32,
    ring_position: u32,
    capacity: u32,
    key_width: u32,
    value_width: u32,
}

override MASK: u32 = 0u;

@group(0) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = group_number(group, groups);
    // The slots of rows that are not in use are other sequences'.
    if row >= min(params.rows, run[0]) {
        return;
    }
    let slot = run[RUN_SLOTS + row];
    var position = u32(states[params.ring_position + slot]);
    for (var t = 0u; t < params.time; t++) {
        if MASK == 1u && load(params.mask + row * params.time + t) == 0.0 {
            continue;
        }
        let place = slot * params.capacity + position % params.capacity;
        for (var i = lane; i < params.key_width; i += 64u) {
            let source = params.keys + row * params.keys_row + t * params.keys_step + i;
            states[params.ring_keys + place * params.key_width + i] = load(source);
        }
        for (var i = lane; i < params.value_width; i += 64u) {
            let source = params.values + row * params.values_row + t * params.values_step + i;
            states[params.ring_values + place * params.value_width + i] = load(source);
        }
        position++;
    }
    // All have read it.
    storageBarrier();
    if lane == 0u {
        states[params.ring_position + slot] = f32(position);
    }
}
