// `rnn_stack` where no workgroup holds it: one step of one direction of one layer, an invocation a
// unit of four rows. Each step is a dispatch of the same pass; states go from one place of the
// arena to another. A projection is a product of its own after this.

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let blocks = (params.hidden + 63u) / 64u;
    let number = group_number(group, groups);
    let first = number / blocks * 4u;
    let unit = number % blocks * 64u + lane;
    if first >= params.rows || unit >= params.hidden {
        return;
    }
    let rows = rows_from(first);
    let stride = GATES * params.hidden;
    var gates = Gates();
    let from_input = first_input(unit);
    for (var k = 0u; k < params.inputs; k++) {
        let x = initial4(0u, rows, from_input + k);
        add_input(&gates, params.weight + k * stride + unit, x);
    }
    add_sums(&gates, unit, params.sums, rows);
    // Only a GRU reads it, which has no projection.
    let before = initial4(0u, rows, unit);
    var carried = begin_carried(rows, unit);
    let h = advance(gates, before, &carried);
    finish4(0u, first, unit, h);
    end_carried(first, unit, carried);
    if params.y_from < params.y_until {
        write_output(first, params.y + unit, h);
    }
}
