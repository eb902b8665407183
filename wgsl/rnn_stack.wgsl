// `rnn_stack`, one direction of one layer, all steps of it in one workgroup for each four rows: the
// loop over time is in here, the output of the step before in workgroup memory, the rest of the
// state in registers. The sums over the inputs are there before (`linear`). An invocation has up to
// four units.

override UNITS: u32 = 1u;
override SIZE: u32 = 64u;
override WIDTH: u32 = 64u;
override HIDDEN: u32 = 1u;
override PROJECTED: u32 = 0u;

var<workgroup> h: array<vec4<f32>, WIDTH>;
// What is projected.
var<workgroup> wide: array<vec4<f32>, HIDDEN>;

@compute @workgroup_size(SIZE)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let first = group_number(group, groups) * 4u;
    if first >= params.rows {
        return;
    }
    let rows = rows_from(first);
    let stride = GATES * params.hidden;
    for (var unit = lane; unit < WIDTH; unit += SIZE) {
        h[unit] = initial4(0u, rows, unit);
    }
    var carried = array<Carried, 4>();
    for (var i = 0u; i < UNITS; i++) {
        let unit = lane + i * SIZE;
        if unit < params.hidden {
            carried[i] = begin_carried(rows, unit);
        }
    }
    workgroupBarrier();

    for (var step = 0u; step < params.steps; step++) {
        var next = array<vec4<f32>, 4>();
        for (var i = 0u; i < UNITS; i++) {
            let unit = lane + i * SIZE;
            if unit >= params.hidden {
                continue;
            }
            var gates = Gates();
            let from_input = first_input(unit);
            for (var k = 0u; k < params.inputs; k++) {
                add_input(&gates, params.weight + k * stride + unit, h[from_input + k]);
            }
            add_sums(&gates, unit, params.sums + step * params.sums_step, rows);
            var before = vec4(0.0);
            if PROJECTED == 0u {
                before = h[unit];
            }
            var state = carried[i];
            next[i] = advance(gates, before, &state);
            carried[i] = state;
            if PROJECTED == 1u {
                wide[unit] = next[i];
            }
        }
        workgroupBarrier();
        for (var unit = lane; unit < WIDTH; unit += SIZE) {
            var value = next[unit / SIZE];
            if PROJECTED == 1u {
                value = vec4(0.0);
                for (var k = 0u; k < params.hidden; k++) {
                    value += weight_at(params.projection + k * WIDTH + unit) * wide[k];
                }
            }
            h[unit] = value;
            if step >= params.y_from && step < params.y_until {
                write_output(first, params.y + step * params.y_step + unit, value);
            }
        }
        workgroupBarrier();
    }

    for (var unit = lane; unit < WIDTH; unit += SIZE) {
        finish4(0u, first, unit, h[unit]);
    }
    for (var i = 0u; i < UNITS; i++) {
        let unit = lane + i * SIZE;
        if unit < params.hidden {
            end_carried(first, unit, carried[i]);
        }
    }
}
