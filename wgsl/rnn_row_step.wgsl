// `rnn_stack` where no workgroup holds it: one step of one direction of one layer for one series as
// soon as possible. A workgroup has UNITS units of a row, sixteen invocations each, which share the
// recurrent inputs; weights are row-major, so that neighbours read side by side. Each step is a
// dispatch of the same pass; a projection is a product of its own after this.

override UNITS: u32 = 8u;
// Recurrent inputs of a unit in fours.
override FOURS: u32 = 16u;

const SHARE: u32 = 16u;

override SIZE: u32 = UNITS * SHARE;
override HELD: u32 = FOURS;
// The recurrent inputs, zeros behind them.
var<workgroup> h: array<vec4<f32>, HELD>;
override PARTS: u32 = 4u * UNITS * SHARE;
// Sums of each gate of each unit of each share.
var<workgroup> parts: array<f32, PARTS>;
override TOTALS: u32 = 4u * UNITS;
var<workgroup> totals: array<f32, TOTALS>;

// Four weights of a row, of which the last may end early.
fn four_weights(row: u32, k: u32) -> vec4<f32> {
    let at = params.weight + row * params.inputs + k;
    if params.inputs % 4u == 0u {
        return weight4_at(at);
    }
    var w = vec4(0.0);
    for (var i = 0u; i < 4u; i++) {
        if k + i < params.inputs {
            w[i] = weight_at(at + i);
        }
    }
    return w;
}

@compute @workgroup_size(SIZE)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let blocks = (params.hidden + UNITS - 1u) / UNITS;
    let number = group_number(group, groups);
    let row = number / blocks;
    let first = number % blocks * UNITS;
    if row >= params.rows {
        return;
    }
    let share = lane % SHARE;
    let own = lane / SHARE;
    let unit = min(first + own, params.hidden - 1u);
    // An sLSTM's workgroup may have units of two heads.
    let is_common = CELL != 4u;
    if is_common {
        for (var i = lane; i < FOURS * 4u; i += SIZE) {
            var x = 0.0;
            if i < params.inputs {
                x = initial(0u, row, i);
            }
            h[i / 4u][i % 4u] = x;
        }
        workgroupBarrier();
    }
    let from_input = first_input(unit);
    //# for g in 4
    var sum_$g = vec4(0.0);
    //# end
    for (var four = share; four < FOURS; four += SHARE * 4u) {
        //# for j in 4
        let at_$j = four + $ju * SHARE;
        var x_$j = vec4(0.0);
        //# for g in GATES
        var w_$j_$g = vec4(0.0);
        //# end
        if at_$j < FOURS {
            if is_common {
                x_$j = h[at_$j];
            } else {
                for (var i = 0u; i < 4u; i++) {
                    if at_$j * 4u + i < params.inputs {
                        x_$j[i] = initial(0u, row, from_input + at_$j * 4u + i);
                    }
                }
            }
            //# for g in GATES
            w_$j_$g = four_weights($gu * params.hidden + unit, at_$j * 4u);
            //# end
        }
        //# end
        //# for j in 4
        //# for g in GATES
        sum_$g += w_$j_$g * x_$j;
        //# end
        //# end
    }
    //# for g in GATES
    parts[($gu * UNITS + own) * SHARE + share] = dot(sum_$g, vec4(1.0));
    //# end
    workgroupBarrier();
    if lane < GATES * UNITS {
        var total = 0.0;
        //# for s in 16
        total += parts[lane * SHARE + $su];
        //# end
        totals[lane] = total;
    }
    workgroupBarrier();
    if lane < UNITS && first + lane < params.hidden {
        let mine = first + lane;
        var gates = Gates();
        //# for g in GATES
        gates.second[$g] = vec4(totals[$gu * UNITS + lane]);
        //# end
        add_sums(&gates, mine, params.sums, vec4(row));
        let rows = vec4(row);
        // Only a GRU reads it, which has no projection.
        var before = vec4(0.0);
        if CELL == 1u {
            before = initial4(0u, rows, mine);
        }
        var carried = begin_carried(rows, mine);
        let y = advance(gates, before, &carried).x;
        store(params.end[0] + row * params.end_row[0] + mine, y);
        if CELL == 0u || CELL == 4u {
            store(params.end[1] + row * params.end_row[1] + mine, carried.c.x);
        }
        if CELL == 4u {
            store(params.end[2] + row * params.end_row[2] + mine, carried.n.x);
            store(params.end[3] + row * params.end_row[3] + mine, carried.m.x);
        }
        if params.y_from < params.y_until {
            store(params.y + row * params.y_row + mine, y);
        }
    }
}
