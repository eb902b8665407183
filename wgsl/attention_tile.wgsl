// `attention` of many queries over keys of the same run, without bias or groups: an invocation a
// query, which holds the query, its sums and its softmax in registers. Sixteen keys and values at
// a time are in workgroup memory, where all invocations read the same element at once. `attention`
// has the other cases.
//
// Keys are taken in ascending order, so that a query's bits do not depend on its neighbours.

// As in `attention`, whose words these are; what this kernel has no use for is named there.
struct Params {
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
    head_v: u32,
    shift: i32,
    mask: u32,
    mask_outer: u32,
    mask_inner: u32,
    buckets: u32,
    distance_first: i32,
    bias: u32,
    bias_heads: u32,
    groups: u32,
    factor: u32,
    ring_keys: u32,
    ring_values: u32,
    ring_position: u32,
    capacity: u32,
    key_width: u32,
    value_width: u32,
}

// Fours of a head.
override FOURS: u32 = 4u;
override CAUSAL: u32 = 0u;
override MASK: u32 = 0u;

@group(0) @binding(0) var<uniform> params: Params;

const QUERIES: u32 = 64u;
const KEYS: u32 = 16u;
const LOWEST: f32 = -3.0e38;

override TILE: u32 = KEYS * FOURS;
var<workgroup> k_tile: array<vec4<f32>, TILE>;
var<workgroup> v_tile: array<vec4<f32>, TILE>;
// 1 where the key is visible.
var<workgroup> shown: array<u32, 16>;

fn load4(i: u32) -> vec4<f32> {
    return vec4(load(i), load(i + 1u), load(i + 2u), load(i + 3u));
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let number = group_number(group, groups);
    let blocks = (params.queries + QUERIES - 1u) / QUERIES;
    let query = (number % blocks) * QUERIES + lane;
    let h = (number / blocks) % params.heads;
    let outer = number / blocks / params.heads;
    if outer >= params.outer {
        return;
    }
    // The last query stands in for those beyond it, which are not stored.
    let own = min(query, params.queries - 1u);
    let position = i32(own) + params.shift;
    let at = params.depths;
    let q = arena[at] + outer * arena[at + 1u] + own * arena[at + 2u] + h * params.head;
    let k = arena[at + 3u] + outer * arena[at + 4u] + h * params.head;
    let k_inner = arena[at + 5u];
    let scale = load(at + 6u);
    let v = params.v + outer * params.v_outer + h * params.head;
    //# for f in FOURS
    let q_$f = load4(q + 4u * $fu);
    var sum_$f = vec4(0.0);
    //# end
    var largest = LOWEST;
    var divisor = 0.0;

    for (var tile = 0u; tile < params.keys; tile += KEYS) {
        workgroupBarrier();
        for (var i = lane; i < TILE; i += QUERIES) {
            // The last key stands in for those beyond it, which nobody sees.
            let key = min(tile + i / FOURS, params.keys - 1u);
            let four = (i % FOURS) * 4u;
            k_tile[i] = load4(k + key * k_inner + four);
            v_tile[i] = load4(v + key * params.v_inner + four);
        }
        if lane < KEYS {
            let key = tile + lane;
            var is_shown = key < params.keys;
            if MASK == 1u && is_shown {
                let to = params.mask + outer * params.mask_outer + key * params.mask_inner;
                is_shown = load(to) != 0.0;
            }
            shown[lane] = u32(is_shown);
        }
        workgroupBarrier();

        var larger = LOWEST;
        //# for c in 16
        var product_$c = vec4(0.0);
        //# for f in FOURS
        product_$c += q_$f * k_tile[$cu * FOURS + $fu];
        //# end
        let seen_$c = shown[$c] == 1u && (CAUSAL == 0u || i32(tile + $cu) <= position);
        let score_$c = select(LOWEST, scale * dot(product_$c, vec4(1.0)), seen_$c);
        larger = select(larger, score_$c, score_$c > larger);
        //# end
        let next = select(largest, larger, larger > largest);
        let kept = exp(largest - next);
        largest = next;
        divisor *= kept;
        //# for f in FOURS
        sum_$f *= kept;
        //# end
        //# for c in 16
        let share_$c = select(0.0, exp(score_$c - next), seen_$c);
        divisor += share_$c;
        //# for f in FOURS
        sum_$f += share_$c * v_tile[$cu * FOURS + $fu];
        //# end
        //# end
    }

    if query < params.queries {
        let y = params.y + outer * params.y_outer + query * params.y_inner + h * params.head;
        //# for f in FOURS
        // A query that sees no key gets zeros.
        let y_$f = select(sum_$f / divisor, vec4(0.0), divisor == 0.0);
        //# for i in 4
        store(y + 4u * $fu + $iu, y_$f[$i]);
        //# end
        //# end
    }
}
