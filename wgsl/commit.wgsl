// Copies new states of each row into its slot of the store. One invocation an element. Steps leave
// their new states in the arena, so that none is half written where a later step reads it.

struct Params {
    source: u32,
    // Elements from a row to the next.
    from_row: u32,
    to: u32,
    // Elements of a slot; rows of a full bucket.
    elements: u32,
    rows: u32,
    // First element of the slot, and how many are copied.
    first: u32,
    copied: u32,
}

@group(0) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = group_number(group, groups) * 64u + lane;
    let row = i / params.copied;
    // The slots of rows that are not in use are other sequences'.
    if row >= min(params.rows, run[0]) {
        return;
    }
    let element = i % params.copied;
    let slot = run[RUN_SLOTS + row];
    states[params.to + slot * params.elements + params.first + element] =
        load(params.source + row * params.from_row + element);
}
