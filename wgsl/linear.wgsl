// `linear`: products with a fused epilogue, `y = residual + f(x·Wᵀ + b) ⊙ g(x·Vᵀ + c)`.
//
// A workgroup computes a tile of 4·ROWS rows by 4·COLUMNS outputs, an invocation 4 by 4 of it, from
// slices of 16 inputs in workgroup memory. Every output is one accumulator over the inputs in
// ascending order, whatever the tile. Rows and outputs lie at strides, so that features, time and
// heads are one kernel; a tile's third number is the block of a block-diagonal product.

struct Params {
    x: u32,
    y: u32,
    weight: u32,
    bias: u32,
    gate: u32,
    gate_bias: u32,
    residual: u32,
    rows: u32,
    outputs: u32,
    inputs: u32,
    // A row's number is outer · inner + its number in there.
    inner: u32,
    x_outer: u32,
    x_inner: u32,
    x_input: u32,
    y_outer: u32,
    y_inner: u32,
    y_output: u32,
    // Blocks, after how many their inputs repeat, and elements from one's to the next's.
    blocks: u32,
    x_blocks: u32,
    x_block: u32,
    y_block: u32,
    slope: f32,
    gate_slope: f32,
}

override ROWS: u32 = 16u;
override COLUMNS: u32 = 16u;
override BIAS: u32 = 0u;
override GATE: u32 = 0u;
override GATE_BIAS: u32 = 0u;
override RESIDUAL: u32 = 0u;
override FUNCTION: u32 = 0u;
override GATE_FUNCTION: u32 = 0u;

@group(0) @binding(0) var<uniform> params: Params;

const SLICE: u32 = 16u;

// Slices of x, the weight and the gate's weight, input by input.
var<workgroup> x_tile: array<f32, 64u * ROWS>;
var<workgroup> w_tile: array<f32, 64u * COLUMNS>;
var<workgroup> v_tile: array<f32, 1u + 64u * COLUMNS * GATE>;

@compute @workgroup_size(COLUMNS, ROWS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) at: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let columns = 4u * COLUMNS;
    let tile_rows = 4u * ROWS;
    let tiles = (params.outputs + columns - 1u) / columns;
    let number = group_number(group, groups);
    let first_output = (number % tiles) * columns;
    let block = (number / tiles) % params.blocks;
    let first_row = number / tiles / params.blocks * tile_rows;
    if first_row >= params.rows {
        return;
    }
    let x_base = params.x + (block % params.x_blocks) * params.x_block;
    let w_base = params.weight + block * params.outputs * params.inputs;
    let v_base = params.gate + block * params.outputs * params.inputs;

    var sums = array<vec4<f32>, 4>();
    var gates = array<vec4<f32>, 4>();
    for (var slice = 0u; slice < params.inputs; slice += SLICE) {
        workgroupBarrier();
        for (var i = lane; i < SLICE * tile_rows; i += ROWS * COLUMNS) {
            let row = first_row + i / SLICE;
            let input = slice + i % SLICE;
            var x = 0.0;
            if row < params.rows && input < params.inputs {
                x = load(x_base + (row / params.inner) * params.x_outer
                    + (row % params.inner) * params.x_inner + input * params.x_input);
            }
            x_tile[(i % SLICE) * tile_rows + i / SLICE] = x;
        }
        for (var i = lane; i < SLICE * columns; i += ROWS * COLUMNS) {
            let output = first_output + i / SLICE;
            let input = slice + i % SLICE;
            let inside = output < params.outputs && input < params.inputs;
            let element = output * params.inputs + input;
            let to = (i % SLICE) * columns + i / SLICE;
            var w = 0.0;
            if inside {
                w = weight_at(w_base + element);
            }
            w_tile[to] = w;
            if GATE == 1u {
                var v = 0.0;
                if inside {
                    v = weight_at(v_base + element);
                }
                v_tile[to] = v;
            }
        }
        workgroupBarrier();
        let inputs = min(SLICE, params.inputs - slice);
        for (var k = 0u; k < inputs; k++) {
            let x_at = k * tile_rows + at.y * 4u;
            let w_at = k * columns + at.x * 4u;
            let w = vec4(w_tile[w_at], w_tile[w_at + 1u], w_tile[w_at + 2u], w_tile[w_at + 3u]);
            let x = vec4(x_tile[x_at], x_tile[x_at + 1u], x_tile[x_at + 2u], x_tile[x_at + 3u]);
            sums[0] += x.x * w;
            sums[1] += x.y * w;
            sums[2] += x.z * w;
            sums[3] += x.w * w;
            if GATE == 1u {
                let v =
                    vec4(v_tile[w_at], v_tile[w_at + 1u], v_tile[w_at + 2u], v_tile[w_at + 3u]);
                gates[0] += x.x * v;
                gates[1] += x.y * v;
                gates[2] += x.z * v;
                gates[3] += x.w * v;
            }
        }
    }

    for (var r = 0u; r < 4u; r++) {
        let row = first_row + at.y * 4u + r;
        if row >= params.rows {
            break;
        }
        let y_row = block * params.y_block + (row / params.inner) * params.y_outer
            + (row % params.inner) * params.y_inner;
        for (var c = 0u; c < 4u; c++) {
            let output = first_output + at.x * 4u + c;
            if output >= params.outputs {
                break;
            }
            let feature = block * params.outputs + output;
            var y = sums[r][c];
            if BIAS == 1u {
                y += weights[params.bias + feature];
            }
            y = activate(FUNCTION, y, params.slope);
            if GATE == 1u {
                var g = gates[r][c];
                if GATE_BIAS == 1u {
                    g += weights[params.gate_bias + feature];
                }
                y *= activate(GATE_FUNCTION, g, params.gate_slope);
            }
            let to = y_row + output * params.y_output;
            if RESIDUAL == 1u {
                y = load(params.residual + to) + y;
            }
            store(params.y + to, y);
        }
    }
}
