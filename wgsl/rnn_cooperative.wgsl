// `rnn_stack`, one direction of one layer, all steps of it in one workgroup for each 16·M·PASSES
// rows, where a subgroup multiplies matrices of 16 by 16 together: for many series at once.
// Operands in half precision, sums and states in single precision.
//
// A subgroup has sixteen units with all their gates, so that what it multiplies it also advances.
// The operands of all rows, `[inputs | outputs of the step before]`, are in workgroup memory. The
// weights of the first KEPT matrices along them stay in registers over all steps, those of the
// others are read every step. Few inputs (X_TILES matrices) are operands of the same products; the
// sums over more are there before (`linear_cooperative`), and those of a step are on their way
// while it multiplies. Sums go through workgroup memory to the lanes that advance the cells,
// because no lane knows which elements of a matrix it has.
//
// Every sum adds up its operands sixteen at a time in ascending order, whatever the batch.
//
// On an H200 through Vulkan, 4,096 series, one direction of 128 units with 10 inputs, 100 steps:
// 419 µs, so 4.2 of a step, of which the products at the measured peak of 618 TFLOP/s are 1.0. The
// two bidirectional layers of `lstm_guide_128` take 2,692 µs; four rows a workgroup and no matrices
// (`rnn_stack`) took 116,043. Predicted were 3,000.

// Sixteens of units, which are subgroups; matrices of a pass along the rows, and passes.
override UNIT_TILES: u32 = 1u;
override LANES: u32 = 32u;
override M: u32 = 1u;
override PASSES: u32 = 2u;
// Matrices along the operands: of inputs, whose weights are kept, whose weights are read.
override X_TILES: u32 = 1u;
override KEPT: u32 = 2u;
override STREAMED: u32 = 0u;
// Fours of inputs of a matrix's rows that an invocation brings in, and of units that it advances.
override X_LOADS: u32 = 1u;
override ITEMS: u32 = 2u;
override HIDDEN: u32 = 16u;
override INPUTS: u32 = 1u;

override SIZE: u32 = LANES * UNIT_TILES;
override TILES: u32 = KEPT + STREAMED;
override ROWS: u32 = 16u * M * PASSES;
// Fours of a row of operands, and of a row of sums of a subgroup: odd or two more, so that rows
// begin in different banks.
override ROW: u32 = 4u * TILES + 2u;
override SUMS_ROW: u32 = 4u * GATES + 1u;

var<workgroup> operands: array<vec4<f16>, ROWS * ROW>;
var<workgroup> sums: array<vec4<f32>, UNIT_TILES * 16u * SUMS_ROW>;

// Four inputs of a row from `column` on at `at`, zeros beyond the last.
fn inputs_of(at: u32, column: u32) -> vec4<f16> {
    var x = vec4(0.0);
    //# for i in 4
    if column + $iu < INPUTS {
        x[$i] = load(at + column + $iu);
    }
    //# end
    return vec4<f16>(x);
}

// Sums over the inputs of four units of a gate, where they are there before.
fn sums_before(at: u32, is_unit: bool) -> vec4<f32> {
    if X_TILES == 0u && is_unit {
        return arena[at / 4u];
    }
    return vec4(0.0);
}

fn initial_units(kind: u32, row: u32, unit: u32) -> vec4<f32> {
    if unit >= HIDDEN {
        return vec4(0.0);
    }
    return vec4(
        initial(kind, row, unit),
        initial(kind, row, unit + 1u),
        initial(kind, row, unit + 2u),
        initial(kind, row, unit + 3u),
    );
}

@compute @workgroup_size(SIZE)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) member: u32,
) {
    // A workgroup behind the last row computes and stores nothing: control flow stays uniform.
    let first_row = group_number(group, groups) * ROWS;
    let last_row = params.rows - 1u;
    let tiles = params.weight / 4u + subgroup * GATES * TILES * 64u;
    let own = subgroup * 16u * SUMS_ROW;

    // Of the sixteen rows of a matrix an invocation advances row `item` of four units, eight lanes
    // beside each other two rows whose sums are in different banks.
    let unit = 16u * subgroup + 4u * (member % 4u);
    let is_unit = unit < HIDDEN;
    //# for j in ITEMS
    let e_$j = $ju * LANES + member;
    let item_$j = e_$j / 32u * 8u + (e_$j / 8u) % 4u + (e_$j / 4u) % 2u * 4u;
    //# end
    //# for g in GATES
    var bias_$g = vec4(0.0);
    if BIAS == 1u && is_unit {
        let bias = params.bias + $gu * HIDDEN + unit;
        bias_$g = vec4(weights[bias], weights[bias + 1u], weights[bias + 2u], weights[bias + 3u]);
    }
    //# end

    // States, and the operands of the first step.
    //# for p in PASSES
    //# for i in M
    let matrix_$p_$i = 16u * ($pu * M + $iu);
    //# for l in X_LOADS
    let x_e_$p_$i_$l = $lu * SIZE + lane;
    let x_is_$p_$i_$l = x_e_$p_$i_$l < 64u * X_TILES;
    let x_row_$p_$i_$l = matrix_$p_$i + x_e_$p_$i_$l / (4u * X_TILES);
    let x_four_$p_$i_$l = x_e_$p_$i_$l % (4u * X_TILES);
    let x_at_$p_$i_$l = params.sums
        + min(first_row + x_row_$p_$i_$l, last_row) * params.sums_row;
    if x_is_$p_$i_$l {
        operands[x_row_$p_$i_$l * ROW + x_four_$p_$i_$l] =
            inputs_of(x_at_$p_$i_$l, 4u * x_four_$p_$i_$l);
    }
    //# end
    //# for j in ITEMS
    let row_$p_$i_$j = min(first_row + matrix_$p_$i + item_$j, last_row);
    let to_$p_$i_$j = (matrix_$p_$i + item_$j) * ROW + 4u * X_TILES + unit / 4u;
    var h_$p_$i_$j = initial_units(0u, row_$p_$i_$j, unit);
    operands[to_$p_$i_$j] = vec4<f16>(h_$p_$i_$j);
    var carried_$p_$i_$j = Carried();
    if CELL == 0u {
        carried_$p_$i_$j.c = initial_units(1u, row_$p_$i_$j, unit);
    }
    //# end
    //# end
    //# end
    //# for k in KEPT
    //# for g in GATES
    // A row of weights is a column of the second operand.
    let w_$k_$g = coopLoad<coop_mat16x16<f16, B>>(&halves[tiles + ($gu * TILES + $ku) * 64u], 4u);
    //# end
    //# end
    workgroupBarrier();

    for (var step = 0u; step < params.steps; step++) {
        let step_sums = params.sums + step * params.sums_step;
        let is_written = step >= params.y_from && step < params.y_until;
        let is_last = step + 1u == params.steps;
        //# for p in PASSES
        //# for i in M
        //# for l in X_LOADS
        var x_next_$p_$i_$l = vec4<f16>();
        if x_is_$p_$i_$l && !is_last {
            x_next_$p_$i_$l = inputs_of(
                x_at_$p_$i_$l + (step + 1u) * params.sums_step,
                4u * x_four_$p_$i_$l,
            );
        }
        //# end
        //# for j in ITEMS
        //# for g in GATES
        let before_$p_$i_$j_$g = sums_before(
            step_sums + row_$p_$i_$j * params.sums_row + $gu * HIDDEN + unit,
            is_unit,
        );
        //# end
        //# end
        //# for g in GATES
        var sum_$p_$i_$g = coop_mat16x16<f32, C>();
        //# end
        //# end
        //# for k in KEPT
        //# for i in M
        let a_$p_$k_$i = coopLoadT<coop_mat16x16<f16, A>>(
            &operands[matrix_$p_$i * ROW + 4u * $ku],
            ROW,
        );
        //# for g in GATES
        sum_$p_$i_$g = coopMultiplyAdd(a_$p_$k_$i, w_$k_$g, sum_$p_$i_$g);
        //# end
        //# end
        //# end
        //# for k in STREAMED
        //# for g in GATES
        let v_$p_$k_$g = coopLoad<coop_mat16x16<f16, B>>(
            &halves[tiles + ($gu * TILES + KEPT + $ku) * 64u],
            4u,
        );
        //# end
        //# for i in M
        let b_$p_$k_$i = coopLoadT<coop_mat16x16<f16, A>>(
            &operands[matrix_$p_$i * ROW + 4u * (KEPT + $ku)],
            ROW,
        );
        //# for g in GATES
        sum_$p_$i_$g = coopMultiplyAdd(b_$p_$k_$i, v_$p_$k_$g, sum_$p_$i_$g);
        //# end
        //# end
        //# end

        //# for i in M
        // All have multiplied the operands of these rows, and read the sums before these.
        workgroupBarrier();
        //# for g in GATES
        coopStoreT(sum_$p_$i_$g, &sums[own + 4u * $gu], SUMS_ROW);
        //# end
        workgroupBarrier();
        //# for l in X_LOADS
        if x_is_$p_$i_$l {
            operands[x_row_$p_$i_$l * ROW + x_four_$p_$i_$l] = x_next_$p_$i_$l;
        }
        //# end
        //# for j in ITEMS
        var gates_$p_$i_$j = Gates();
        //# for g in GATES
        gates_$p_$i_$j.first[$g] = before_$p_$i_$j_$g;
        gates_$p_$i_$j.second[$g] =
            sums[own + item_$j * SUMS_ROW + 4u * $gu + member % 4u] + bias_$g;
        //# end
        h_$p_$i_$j = advance(gates_$p_$i_$j, h_$p_$i_$j, &carried_$p_$i_$j);
        operands[to_$p_$i_$j] = vec4<f16>(h_$p_$i_$j);
        if is_unit && first_row + matrix_$p_$i + item_$j < params.rows {
            if is_written {
                let y = params.y + row_$p_$i_$j * params.y_row + step * params.y_step + unit;
                arena[y / 4u] = h_$p_$i_$j;
            }
            if is_last {
                let end = params.end[0] + row_$p_$i_$j * params.end_row[0] + unit;
                arena[end / 4u] = h_$p_$i_$j;
            }
        }
        //# end
        //# end
        //# end
        if PASSES == 1u {
            // The next step's products read what this one wrote.
            workgroupBarrier();
        }
    }

    if CELL == 0u {
        //# for p in PASSES
        //# for i in M
        //# for j in ITEMS
        if is_unit && first_row + matrix_$p_$i + item_$j < params.rows {
            let end = params.end[1] + row_$p_$i_$j * params.end_row[1] + unit;
            arena[end / 4u] = carried_$p_$i_$j.c;
        }
        //# end
        //# end
        //# end
    }
}
