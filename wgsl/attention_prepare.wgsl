// Before `attention`: queries or keys head by head rotated, normalised and scaled by dimension.
// One invocation a head of a position. Only where one of these is asked for.

struct Params {
    x: u32,
    // Elements from a position to the next.
    x_step: u32,
    // [rows, time, heads, head].
    y: u32,
    rows: u32,
    time: u32,
    heads: u32,
    head: u32,
    // Position of index 0, which is negative where there are more queries than keys.
    first: i32,
    // Constants, a pair of dimensions each: turns of 1, 64 and 4096 positions.
    turns: u32,
    // Weight of the norm; factor of each dimension.
    norm: u32,
    factor: u32,
    eps: f32,
    // [rows, mask_time], 1 where visible.
    mask: u32,
    mask_time: u32,
    // Where the store has the rows written so far.
    position: u32,
}

// 0 none, 1 by index, 2 by the visible rows before, 3 as 2 after those of the stream.
override ROPE: u32 = 0u;
override NORM: u32 = 0u;
override FACTOR: u32 = 0u;
override MASK: u32 = 0u;

@group(0) @binding(0) var<uniform> params: Params;

fn visible_before(row: u32, end: i32) -> i32 {
    var count = 0;
    for (var j = 0; j < end; j++) {
        if MASK == 0u || load(params.mask + row * params.mask_time + u32(j)) != 0.0 {
            count++;
        }
    }
    return count;
}

// (cos, sin) of a pair's angle at a position, by digits of base 64: each product stays small, so
// that far positions are as exact as near ones.
fn rotation(pair: u32, position: i32) -> vec2<f32> {
    let p = u32(abs(position));
    let at = params.turns + pair * 3u;
    let turns = fract(f32(p & 63u) * load(at)) + fract(f32((p >> 6u) & 63u) * load(at + 1u))
        + fract(f32(p >> 12u) * load(at + 2u));
    let angle = cos_sin_turns(turns);
    return vec2(angle.x, select(angle.y, -angle.y, position < 0));
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = group_number(group, groups) * 64u + lane;
    if i >= params.rows * params.time * params.heads {
        return;
    }
    let h = i % params.heads;
    let index = (i / params.heads) % params.time;
    let row = i / params.heads / params.time;
    let x = params.x + (row * params.time + index) * params.x_step + h * params.head;
    let y = params.y + i * params.head;
    var position = i32(index) + params.first;
    if ROPE == 2u {
        position = visible_before(row, position);
    }
    if ROPE == 3u {
        let slot = run[RUN_SLOTS + row];
        position = i32(states[params.position + slot]) + visible_before(row, i32(index));
    }
    let half = params.head / 2u;
    var squares = 0.0;
    for (var d = 0u; d < params.head; d++) {
        var value = load(x + d);
        if ROPE != 0u {
            let pair = d % half;
            let turn = rotation(pair, position);
            let a = load(x + pair);
            let b = load(x + pair + half);
            value = select(a * turn.x - b * turn.y, b * turn.x + a * turn.y, d >= half);
        }
        squares += value * value;
        store(y + d, value);
    }
    if NORM == 0u && FACTOR == 0u {
        return;
    }
    let root = sqrt(squares / f32(params.head) + params.eps);
    for (var d = 0u; d < params.head; d++) {
        var value = load(y + d);
        if NORM == 1u {
            value = value / root * weights[params.norm + d];
        }
        if FACTOR == 1u {
            value *= weights[params.factor + d];
        }
        store(y + d, value);
    }
}
