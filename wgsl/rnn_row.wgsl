// `rnn_stack`, one direction of one layer, all steps of it in one workgroup for each row, with the
// recurrent weights in registers: for one series as soon as possible. The sums over the inputs are
// there before (`linear`); those of the next step are on their way during a step.
//
// Invocation `unit · SLICES + slice` has the weights of all gates of a unit for 4·FOURS recurrent
// inputs, adds up their products, and leaves them in workgroup memory. The invocation numbered as
// the unit adds the slices in ascending order and advances the cell.

override SLICES: u32 = 8u;
override FOURS: u32 = 4u;
override HIDDEN: u32 = 64u;
override SIZE: u32 = 512u;

// What the step before gave, zeros behind it.
override PADDED: u32 = SLICES * FOURS;
var<workgroup> h: array<vec4<f32>, PADDED>;
// Sums of the gates of each slice of each unit.
override PARTS: u32 = SLICES * HIDDEN;
var<workgroup> parts: array<vec4<f32>, PARTS>;

// The recurrent weights of a gate of a unit for four inputs from `k` on, zeros beyond the last.
fn weights_of(unit: u32, gate: u32, k: u32) -> vec4<f32> {
    var w = vec4(0.0);
    for (var i = 0u; i < 4u; i++) {
        if unit < HIDDEN && k + i < HIDDEN {
            w[i] = weight_at(params.weight + (k + i) * GATES * HIDDEN + gate * HIDDEN + unit);
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
    let row = group_number(group, groups);
    if row >= params.rows {
        return;
    }
    let slice = lane % SLICES;
    let own = lane / SLICES;
    //# for f in FOURS
    //# for g in GATES
    let w_$f_$g = Kept(weights_of(own, $gu, (slice * FOURS + $fu) * 4u));
    //# end
    //# end

    let is_unit = lane < HIDDEN;
    let unit = min(lane, HIDDEN - 1u);
    for (var i = lane; i < PADDED * 4u; i += SIZE) {
        var x = 0.0;
        if i < HIDDEN {
            x = initial(0u, row, i);
        }
        h[i / 4u][i % 4u] = x;
    }
    var carried = begin_carried(vec4(row), unit);
    var bias = vec4(0.0);
    //# for g in GATES
    if BIAS == 1u {
        bias[$g] = weights[params.bias + $gu * HIDDEN + unit];
    }
    //# end
    let sums = params.sums + row * params.sums_row + unit;
    var inputs = vec4(0.0);
    if is_unit {
        //# for g in GATES
        inputs[$g] = load(sums + $gu * HIDDEN);
        //# end
    }
    workgroupBarrier();

    for (var step = 0u; step < params.steps; step++) {
        var part = vec4(0.0);
        //# for f in FOURS
        let h_$f = h[slice * FOURS + $fu];
        //# for g in GATES
        part[$g] += dot(vec4<f32>(w_$f_$g), h_$f);
        //# end
        //# end
        if lane < PARTS {
            parts[slice * HIDDEN + own] = part;
        }
        workgroupBarrier();
        if is_unit {
            var second = bias;
            //# for s in SLICES
            second += parts[$su * HIDDEN + unit];
            //# end
            var gates = Gates();
            //# for g in GATES
            gates.first[$g] = vec4(inputs[$g]);
            gates.second[$g] = vec4(second[$g]);
            //# end
            if step + 1u < params.steps {
                let next = sums + (step + 1u) * params.sums_step;
                //# for g in GATES
                inputs[$g] = load(next + $gu * HIDDEN);
                //# end
            }
            let before = h[unit / 4u][unit % 4u];
            let value = advance(gates, vec4(before), &carried).x;
            h[unit / 4u][unit % 4u] = value;
            if step >= params.y_from && step < params.y_until {
                store(params.y + row * params.y_row + step * params.y_step + unit, value);
            }
        }
        workgroupBarrier();
    }

    if is_unit {
        store(params.end[0] + row * params.end_row[0] + unit, h[unit / 4u][unit % 4u]);
        if CELL == 0u {
            store(params.end[1] + row * params.end_row[1] + unit, carried.c.x);
        }
    }
}
