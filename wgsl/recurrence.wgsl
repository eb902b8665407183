// What the kernels of a recurrence share: their parameters, where states begin and end, and the
// sums over the inputs. Not a kernel. Rows come in fours, the components of the vectors.

struct Params {
    // [rows, steps, gates · hidden] sums over the inputs: of row 0 and the first step in order of
    // time as this direction goes, with strides. Strides wrap where time goes backwards.
    sums: u32,
    sums_row: u32,
    sums_step: u32,
    y: u32,
    y_row: u32,
    y_step: u32,
    rows: u32,
    steps: u32,
    // Steps [y_from, y_until) are written.
    y_from: u32,
    y_until: u32,
    // [inputs, gates · hidden], [gates · hidden], [hidden, width].
    weight: u32,
    bias: u32,
    projection: u32,
    // Recurrent inputs of a unit, and units that share them.
    inputs: u32,
    shared_by: u32,
    hidden: u32,
    // Of h, c, n, m: where row 0 begins, elements to the next row; and where row 0 ends.
    begin: vec4<u32>,
    begin_row: vec4<u32>,
    end: vec4<u32>,
    end_row: vec4<u32>,
}

override GATES: u32 = 4u;
override BIAS: u32 = 0u;
// 0 zeros, 1 the arena, 2 the store.
override BEGIN: u32 = 0u;

@group(0) @binding(0) var<uniform> params: Params;

// Four rows from `first` on. The last row stands in for those beyond it, which are not stored.
fn rows_from(first: u32) -> vec4<u32> {
    return min(vec4(first) + vec4(0u, 1u, 2u, 3u), vec4(params.rows - 1u));
}

fn initial(kind: u32, row: u32, unit: u32) -> f32 {
    if BEGIN == 1u {
        return load(params.begin[kind] + row * params.begin_row[kind] + unit);
    }
    if BEGIN == 2u {
        let slot = run[RUN_SLOTS + row];
        return states[params.begin[kind] + slot * params.begin_row[kind] + unit];
    }
    return 0.0;
}

fn initial4(kind: u32, rows: vec4<u32>, unit: u32) -> vec4<f32> {
    return vec4(
        initial(kind, rows.x, unit),
        initial(kind, rows.y, unit),
        initial(kind, rows.z, unit),
        initial(kind, rows.w, unit),
    );
}

fn finish4(kind: u32, first: u32, unit: u32, x: vec4<f32>) {
    for (var i = 0u; i < 4u; i++) {
        if first + i < params.rows {
            store(params.end[kind] + (first + i) * params.end_row[kind] + unit, x[i]);
        }
    }
}

// What the cell carries beside its output.
fn begin_carried(rows: vec4<u32>, unit: u32) -> Carried {
    var carried: Carried;
    if CELL == 0u || CELL == 4u {
        carried.c = initial4(1u, rows, unit);
    }
    if CELL == 4u {
        carried.n = initial4(2u, rows, unit);
        carried.m = initial4(3u, rows, unit);
    }
    return carried;
}

fn end_carried(first: u32, unit: u32, carried: Carried) {
    if CELL == 0u || CELL == 4u {
        finish4(1u, first, unit, carried.c);
    }
    if CELL == 4u {
        finish4(2u, first, unit, carried.n);
        finish4(3u, first, unit, carried.m);
    }
}

// Adds the products of one recurrent input to the sums of a unit's gates.
fn add_input(gates: ptr<function, Gates>, at: u32, x: vec4<f32>) {
    (*gates).second[0] += weight_at(at) * x;
    if GATES > 1u {
        (*gates).second[1] += weight_at(at + params.hidden) * x;
        (*gates).second[2] += weight_at(at + 2u * params.hidden) * x;
    }
    if GATES > 3u {
        (*gates).second[3] += weight_at(at + 3u * params.hidden) * x;
    }
}

// Adds the recurrent bias, and takes the sums over the inputs of a step.
fn add_sums(gates: ptr<function, Gates>, unit: u32, sums: u32, rows: vec4<u32>) {
    for (var gate = 0u; gate < GATES; gate++) {
        let place = gate * params.hidden + unit;
        if BIAS == 1u {
            (*gates).second[gate] += weights[params.bias + place];
        }
        (*gates).first[gate] = vec4(
            load(sums + place + rows.x * params.sums_row),
            load(sums + place + rows.y * params.sums_row),
            load(sums + place + rows.z * params.sums_row),
            load(sums + place + rows.w * params.sums_row),
        );
    }
}

// The first input of a unit: an sLSTM's head has its own.
fn first_input(unit: u32) -> u32 {
    return select(0u, unit / params.shared_by * params.inputs, CELL == 4u);
}

fn write_output(first: u32, place: u32, value: vec4<f32>) {
    for (var i = 0u; i < 4u; i++) {
        if first + i < params.rows {
            store(place + (first + i) * params.y_row, value[i]);
        }
    }
}
