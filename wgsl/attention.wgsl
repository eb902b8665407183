// `attention`: softmax over keys, online, so that no matrix of scores is stored. A workgroup takes
// four queries of a head (the components of its vectors) over 64 keys at a time: an invocation a
// key for the scores, then an invocation a column of the values.
//
// Queries and keys lie at strides, so that attention over time and over the batch are one kernel:
// the outer index is the row or the position, the inner one the other. With a ring the first
// `capacity` keys are those of the store, oldest first.

struct Params {
    // Constants: for each depth, queries and keys with outer and inner stride, and scale.
    depths: u32,
    v: u32,
    v_outer: u32,
    v_inner: u32,
    y: u32,
    y_outer: u32,
    y_inner: u32,
    outer: u32,
    queries: u32,
    keys: u32,
    heads: u32,
    head: u32,
    // Columns of a value head, and of all.
    head_v: u32,
    // Position of query 0 relative to key 0.
    shift: i32,
    mask: u32,
    mask_outer: u32,
    mask_inner: u32,
    // Constants: bucket of each distance from `distance_first` on; table [buckets, heads].
    buckets: u32,
    distance_first: i32,
    // Table, or matrix [bias_heads, queries, keys].
    bias: u32,
    bias_heads: u32,
    // Numbers of groups, and rows of the batch for each row of the run.
    groups: u32,
    factor: u32,
    // Ring: stores of keys, values and position, and the widths of their rows.
    ring_keys: u32,
    ring_values: u32,
    ring_position: u32,
    capacity: u32,
    key_width: u32,
    value_width: u32,
}

override DEPTHS: u32 = 1u;
// Blocks of 64 columns of a value head.
override BLOCKS: u32 = 1u;
override CAUSAL: u32 = 0u;
override MASK: u32 = 0u;
// 1 by distance, 2 a matrix.
override BIAS: u32 = 0u;
override GROUPS: u32 = 0u;
override RING: u32 = 0u;
// 1 where all heads share one value head and the result is their mean.
override MEAN: u32 = 0u;

@group(0) @binding(0) var<uniform> params: Params;

const KEYS: u32 = 64u;
const LOWEST: f32 = -3.0e38;

var<workgroup> shares: array<vec4<f32>, 64>;
var<workgroup> tree: array<vec4<f32>, 64>;

fn max4(lane: u32, x: vec4<f32>) -> vec4<f32> {
    workgroupBarrier();
    tree[lane] = x;
    workgroupBarrier();
    for (var n = 32u; n > 0u; n = n / 2u) {
        if lane < n {
            let a = tree[lane];
            let b = tree[lane + n];
            tree[lane] = select(a, b, b > a);
        }
        workgroupBarrier();
    }
    return tree[0];
}

fn sum4(lane: u32, x: vec4<f32>) -> vec4<f32> {
    workgroupBarrier();
    tree[lane] = x;
    workgroupBarrier();
    for (var n = 32u; n > 0u; n = n / 2u) {
        if lane < n {
            tree[lane] = tree[lane] + tree[lane + n];
        }
        workgroupBarrier();
    }
    return tree[0];
}

// Rows written to the ring before this run.
fn written(outer: u32) -> i32 {
    return i32(states[params.ring_position + run[RUN_SLOTS + outer]]);
}

fn is_shown(outer: u32, j: u32) -> bool {
    if MASK == 0u {
        return true;
    }
    return load(params.mask + outer * params.mask_outer + j * params.mask_inner) != 0.0;
}

// Position in the stream of a row of this run.
fn stream_position(outer: u32, t: u32) -> i32 {
    var position = written(outer);
    for (var j = 0u; j < t; j++) {
        if is_shown(outer, j) {
            position++;
        }
    }
    return position;
}

// Where the store has the row of a position, in rows. Positions before the first are not looked at,
// but are computed with.
fn ring_place(outer: u32, position: i32) -> u32 {
    let capacity = i32(params.capacity);
    let index = u32(((position % capacity) + capacity) % capacity);
    return run[RUN_SLOTS + outer] * params.capacity + index;
}

fn query_of(first: u32, i: u32) -> u32 {
    // The last query stands in for those beyond it, which are not stored.
    return min(first + i, params.queries - 1u);
}

fn allowed(outer: u32, query: u32, j: u32, position: i32, key_position: i32) -> bool {
    if RING == 1u {
        if key_position <= position - i32(params.capacity) || key_position < 0 {
            return false;
        }
        if j < params.capacity {
            return true;
        }
        let t = j - params.capacity;
        return is_shown(outer, t) && (CAUSAL == 0u || t <= query);
    }
    if GROUPS == 1u && arena[params.groups + query] != arena[params.groups + j] {
        return false;
    }
    return is_shown(outer, j) && (CAUSAL == 0u || key_position <= position);
}

fn bias(h: u32, query: u32, j: u32, distance: i32) -> f32 {
    if BIAS == 1u {
        let bucket = arena[params.buckets + u32(distance - params.distance_first)];
        return weights[params.bias + bucket * params.heads + h];
    }
    if BIAS == 2u {
        let shared_head = min(h, params.bias_heads - 1u);
        return weights[params.bias + (shared_head * params.queries + query) * params.keys + j];
    }
    return 0.0;
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let number = group_number(group, groups);
    let blocks = (params.queries + 3u) / 4u;
    let first = (number % blocks) * 4u;
    let each = select(params.heads, 1u, MEAN == 1u);
    let first_head = (number / blocks) % each;
    let outer = number / blocks / each;
    if outer >= params.outer {
        return;
    }
    let keys = select(params.keys, run[0] * params.factor, GROUPS == 1u);
    let width = params.head_v;

    var totals = array<vec4<f32>, 4>();
    let last_head = select(first_head + 1u, params.heads, MEAN == 1u);
    for (var h = first_head; h < last_head; h++) {
        var sums = array<vec4<f32>, 4>();
        var largest = vec4(LOWEST);
        var divisor = vec4(0.0);
        for (var tile = 0u; tile < keys; tile += KEYS) {
            let j = tile + lane;
            var scores = vec4(LOWEST);
            var seen = vec4(false);
            if j < keys {
                var key_position = i32(j);
                if RING == 1u {
                    key_position = written(outer) - i32(params.capacity) + i32(j);
                    if j >= params.capacity {
                        key_position = stream_position(outer, j - params.capacity);
                    }
                }
                var sum = vec4(0.0);
                for (var depth = 0u; depth < DEPTHS; depth++) {
                    let at = params.depths + depth * 7u;
                    let q = arena[at] + outer * arena[at + 1u] + h * params.head;
                    let q_inner = arena[at + 2u];
                    let q0 = q + query_of(first, 0u) * q_inner;
                    let q1 = q + query_of(first, 1u) * q_inner;
                    let q2 = q + query_of(first, 2u) * q_inner;
                    let q3 = q + query_of(first, 3u) * q_inner;
                    var product = vec4(0.0);
                    if RING == 1u && j < params.capacity {
                        let place = ring_place(outer, key_position);
                        let k = params.ring_keys + place * params.key_width + h * params.head;
                        for (var d = 0u; d < params.head; d++) {
                            product += states[k + d]
                                * vec4(load(q0 + d), load(q1 + d), load(q2 + d), load(q3 + d));
                        }
                    } else {
                        let row = select(j, j - params.capacity, RING == 1u);
                        let k = arena[at + 3u] + outer * arena[at + 4u] + row * arena[at + 5u]
                            + h * params.head;
                        for (var d = 0u; d < params.head; d++) {
                            product += load(k + d)
                                * vec4(load(q0 + d), load(q1 + d), load(q2 + d), load(q3 + d));
                        }
                    }
                    sum += load(at + 6u) * product;
                }
                for (var i = 0u; i < 4u; i++) {
                    let query = query_of(first, i);
                    var position = i32(query) + params.shift;
                    if RING == 1u {
                        position = stream_position(outer, query);
                    }
                    if allowed(outer, query, j, position, key_position) {
                        seen[i] = true;
                        scores[i] = sum[i] + bias(h, query, j, key_position - position);
                    }
                }
            }
            let larger = max4(lane, scores);
            let next = select(largest, larger, larger > largest);
            let kept = exp(largest - next);
            let share = select(vec4(0.0), exp(scores - next), seen);
            largest = next;
            divisor = divisor * kept + sum4(lane, share);
            shares[lane] = share;
            workgroupBarrier();
            let end = min(KEYS, keys - tile);
            for (var block = 0u; block < BLOCKS; block++) {
                let column = block * KEYS + lane;
                var sum = sums[block] * kept;
                if column < width {
                    let c = select(h * width, 0u, MEAN == 1u) + column;
                    for (var k = 0u; k < end; k++) {
                        let key = tile + k;
                        var value: f32;
                        if RING == 1u && key < params.capacity {
                            let position = written(outer) - i32(params.capacity) + i32(key);
                            let place = ring_place(outer, position);
                            value = states[params.ring_values + place * params.value_width + c];
                        } else {
                            let row = select(key, key - params.capacity, RING == 1u);
                            let v = params.v + outer * params.v_outer + row * params.v_inner;
                            value = load(v + c);
                        }
                        sum += shares[k] * value;
                    }
                }
                sums[block] = sum;
            }
            workgroupBarrier();
        }
        let heads = select(1.0, f32(params.heads), MEAN == 1u);
        for (var block = 0u; block < BLOCKS; block++) {
            // A query that sees no key gets zeros.
            let y = select(sums[block] / divisor, vec4(0.0), divisor == vec4(0.0));
            totals[block] += y / heads;
        }
    }
    for (var block = 0u; block < BLOCKS; block++) {
        let column = block * KEYS + lane;
        if column >= width {
            continue;
        }
        let c = select(first_head * width, 0u, MEAN == 1u) + column;
        for (var i = 0u; i < 4u; i++) {
            if first + i < params.queries {
                let to = params.y + outer * params.y_outer + (first + i) * params.y_inner + c;
                store(to, totals[block][i]);
            }
        }
    }
}
