// `linear` where a subgroup multiplies matrices of 16 by 16 together: operands in half precision,
// sums in single precision. For rows and outputs that lie at multiples of four and have no gate;
// `linear` has the others.
//
// A workgroup computes a tile of 16·GROUPS_M·M rows by 16·GROUPS_N·N outputs, a subgroup M by N
// matrices of it. Slices of 16·DEPTH inputs are in workgroup memory as halves, the slice after
// is on its way in registers meanwhile. Sums go through workgroup memory to the lanes that finish
// them, because no lane knows which elements of a matrix it has. Every output adds up its inputs
// sixteen at a time in ascending order, whatever the tile.

struct Params {
    x: u32,
    y: u32,
    weight: u32,
    bias: u32,
    residual: u32,
    rows: u32,
    // In fours.
    outputs: u32,
    inputs: u32,
    // A row's number is outer · inner + its number in there.
    inner: u32,
    x_outer: u32,
    x_inner: u32,
    y_outer: u32,
    y_inner: u32,
    slope: f32,
}

override GROUPS_M: u32 = 2u;
override GROUPS_N: u32 = 2u;
override M: u32 = 1u;
override N: u32 = 1u;
override DEPTH: u32 = 2u;
override LANES: u32 = 32u;
// Fours of a slice that an invocation brings in.
override X_LOADS: u32 = 1u;
override W_LOADS: u32 = 1u;
override BIAS: u32 = 0u;
override RESIDUAL: u32 = 0u;
override FUNCTION: u32 = 0u;

@group(0) @binding(0) var<uniform> params: Params;

// Fours of a slice, and of a row of it in workgroup memory: two more, so that rows begin in
// different banks.
override SLICE: u32 = 4u * DEPTH;
override SLICE_ROW: u32 = SLICE + 2u;
override TILE_M: u32 = 16u * GROUPS_M * M;
override TILE_N: u32 = 16u * GROUPS_N * N;
// Invocations.
override SIZE: u32 = LANES * GROUPS_M * GROUPS_N;
// Fours of a row of sums on their way.
override SUMS_ROW: u32 = 4u * N + 1u;

var<workgroup> x_tile: array<vec4<f16>, TILE_M * SLICE_ROW>;
var<workgroup> w_tile: array<vec4<f16>, TILE_N * SLICE_ROW>;
var<workgroup> sums: array<vec4<f32>, GROUPS_M * GROUPS_N * 16u * SUMS_ROW>;

fn activate4(x: vec4<f32>) -> vec4<f32> {
    if FUNCTION == 0u {
        return x;
    }
    return vec4(
        activate(FUNCTION, x.x, params.slope),
        activate(FUNCTION, x.y, params.slope),
        activate(FUNCTION, x.z, params.slope),
        activate(FUNCTION, x.w, params.slope),
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
    let tiles = (4u * params.outputs + TILE_N - 1u) / TILE_N;
    let number = group_number(group, groups);
    let first_output = (number % tiles) * TILE_N;
    // A workgroup behind the last tile computes and stores nothing: control flow stays uniform.
    let first_row = number / tiles * TILE_M;
    let own_m = subgroup / GROUPS_N * (16u * M);
    let own_n = subgroup % GROUPS_N * (16u * N);

    // Rows and outputs beyond the last are the last, and are not stored.
    let column = lane % SLICE;
    //# for i in X_LOADS
    let x_row_$i = min(first_row + ($iu * SIZE + lane) / SLICE, params.rows - 1u);
    let x_from_$i = params.x + x_row_$i / params.inner * params.x_outer
        + x_row_$i % params.inner * params.x_inner + column;
    let x_to_$i = ($iu * SIZE + lane) / SLICE * SLICE_ROW + column;
    var x_next_$i = vec4(0.0);
    //# end
    //# for i in W_LOADS
    let w_row_$i = min(first_output + ($iu * SIZE + lane) / SLICE, 4u * params.outputs - 1u);
    let w_from_$i = params.weight + w_row_$i * params.inputs + column;
    let w_to_$i = ($iu * SIZE + lane) / SLICE * SLICE_ROW + column;
    var w_next_$i = vec4<f16>();
    //# end
    if column < params.inputs {
        //# for i in X_LOADS
        x_next_$i = arena[x_from_$i];
        //# end
        //# for i in W_LOADS
        w_next_$i = halves[w_from_$i];
        //# end
    }
    //# for i in M
    //# for j in N
    var sum_$i_$j = coop_mat16x16<f32, C>();
    //# end
    //# end

    for (var slice = 0u; slice < params.inputs; slice += SLICE) {
        workgroupBarrier();
        //# for i in X_LOADS
        x_tile[x_to_$i] = vec4<f16>(x_next_$i);
        //# end
        //# for i in W_LOADS
        w_tile[w_to_$i] = w_next_$i;
        //# end
        workgroupBarrier();
        let next = slice + SLICE;
        if next < params.inputs {
            if next + column < params.inputs {
                //# for i in X_LOADS
                x_next_$i = arena[x_from_$i + next];
                //# end
                //# for i in W_LOADS
                w_next_$i = halves[w_from_$i + next];
                //# end
            } else {
                //# for i in X_LOADS
                x_next_$i = vec4(0.0);
                //# end
                //# for i in W_LOADS
                w_next_$i = vec4<f16>();
                //# end
            }
        }
        //# for k in DEPTH
        //# for i in M
        let a_$k_$i = coopLoadT<coop_mat16x16<f16, A>>(
            &x_tile[(own_m + 16u * $iu) * SLICE_ROW + 4u * $ku],
            SLICE_ROW,
        );
        //# end
        //# for j in N
        // A row of weights is a column of the second operand.
        let b_$k_$j = coopLoad<coop_mat16x16<f16, B>>(
            &w_tile[(own_n + 16u * $ju) * SLICE_ROW + 4u * $ku],
            SLICE_ROW,
        );
        //# end
        //# for i in M
        //# for j in N
        sum_$i_$j = coopMultiplyAdd(a_$k_$i, b_$k_$j, sum_$i_$j);
        //# end
        //# end
        //# end
    }

    let own = subgroup * 16u * SUMS_ROW;
    //# for i in M
    workgroupBarrier();
    //# for j in N
    coopStoreT(sum_$i_$j, &sums[own + 4u * $ju], SUMS_ROW);
    //# end
    workgroupBarrier();
    for (var e = member; e < 64u * N; e += LANES) {
        let r = e / (4u * N);
        let c = e % (4u * N);
        let row = first_row + own_m + 16u * $iu + r;
        let output = (first_output + own_n) / 4u + c;
        if row < params.rows && output < params.outputs {
            var y = sums[own + r * SUMS_ROW + c];
            if BIAS == 1u {
                y += weights[params.bias + output];
            }
            y = activate4(y);
            let to = row / params.inner * params.y_outer + row % params.inner * params.y_inner
                + output;
            if RESIDUAL == 1u {
                y = arena[params.residual + to] + y;
            }
            arena[params.y + to] = y;
        }
    }
    //# end
}
