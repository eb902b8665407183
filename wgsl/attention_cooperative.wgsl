// `attention` where a subgroup multiplies matrices of 16 by 16 together, without bias or groups:
// operands in half precision, scores and sums in single precision. `attention_tile` and `attention`
// have the other cases.
//
// A workgroup has 16·GROUPS queries of a head, a subgroup sixteen of them, whose queries and sums
// it keeps in registers. Keys and values are in workgroup memory as halves, 16·KEY_TILES at a time.
// Nothing can scale the rows of sums that are matrices, so that the largest score of a query is
// known before the first share: from the same scores where one tile has all keys (ONCE), else all
// scores are computed twice.
//
// Keys are taken in ascending order, so that a query's bits do not depend on its neighbours.
//
// On an H200 through Vulkan, in µs (1,024 rows of 64 positions and 8 heads of 16; 16 rows of 512
// positions and 12 heads of 64): `attention_tile` 211 and 766; this 225 and 316; with the next keys
// and values on their way while a tile is multiplied 186 and 228. Predicted were 50 and 40: what
// remains is barriers, of which a tile has four, not products.

struct Params {
    // Queries, keys, values and result: place, elements from a row and from a position to the next.
    q: u32,
    q_outer: u32,
    q_inner: u32,
    k: u32,
    k_outer: u32,
    k_inner: u32,
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
    // Position of query 0, which is negative where there are more queries than keys.
    shift: i32,
    // [outer, keys], 1 where visible.
    mask: u32,
    mask_outer: u32,
    scale: f32,
}

// Subgroups, lanes of one, matrices along a tile of keys and along a head.
override GROUPS: u32 = 4u;
override LANES: u32 = 32u;
override KEY_TILES: u32 = 4u;
override DEPTH: u32 = 1u;
// Fours of a tile of keys that an invocation brings in, and of a row of scores that it has.
override LOADS: u32 = 2u;
override FOURS: u32 = 8u;
override ONCE: u32 = 1u;
override CAUSAL: u32 = 0u;
override MASK: u32 = 0u;

@group(0) @binding(0) var<uniform> params: Params;

override SIZE: u32 = LANES * GROUPS;
override KEYS: u32 = 16u * KEY_TILES;
// Lanes of a row.
override SHARE: u32 = LANES / 16u;
// Fours of a head; of rows in workgroup memory, so that they begin in different banks.
override HEAD: u32 = 4u * DEPTH;
override HEAD_ROW: u32 = HEAD + 2u;
override ROW: u32 = 4u * KEY_TILES + 2u;

const LOWEST: f32 = -3.0e38;

var<workgroup> k_tile: array<vec4<f16>, KEYS * HEAD_ROW>;
var<workgroup> v_tile: array<vec4<f16>, KEYS * HEAD_ROW>;
// Of each subgroup: scores, then sums; and shares, before them queries.
var<workgroup> scores: array<vec4<f32>, GROUPS * 16u * ROW>;
var<workgroup> shares: array<vec4<f16>, GROUPS * 16u * ROW>;
// 1 where the key is visible.
var<workgroup> shown: array<f32, KEYS>;

// Whether a query sees four keys from `key` on, which is the tile's `column`.
fn seen(query: i32, key: u32, column: u32) -> vec4<bool> {
    var is_seen = vec4(key) + vec4(0u, 1u, 2u, 3u) < vec4(params.keys);
    if CAUSAL == 1u {
        is_seen = is_seen & (vec4(i32(key)) + vec4(0, 1, 2, 3) <= vec4(query));
    }
    if MASK == 1u {
        let visible = vec4(shown[column], shown[column + 1u], shown[column + 2u],
            shown[column + 3u]);
        is_seen = is_seen & (visible != vec4(0.0));
    }
    return is_seen;
}

fn largest4(x: vec4<f32>) -> f32 {
    return max(max(x.x, x.y), max(x.z, x.w));
}

@compute @workgroup_size(SIZE)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) member: u32,
) {
    let number = group_number(group, groups);
    let blocks = (params.queries + 16u * GROUPS - 1u) / (16u * GROUPS);
    // A workgroup behind the last row computes and stores nothing: control flow stays uniform.
    let h = (number / blocks) % params.heads;
    let is_row = number / blocks / params.heads < params.outer;
    let outer = min(number / blocks / params.heads, params.outer - 1u);
    let first = (number % blocks) * 16u * GROUPS + 16u * subgroup;

    // An invocation has every SHARE-th four of a query's row.
    let own = member / SHARE;
    let part = member % SHARE;
    let query = first + own;
    let position = i32(query) + params.shift;
    let q = (params.q + outer * params.q_outer + min(query, params.queries - 1u) * params.q_inner)
        / 4u + h * HEAD;
    let own_scores = (subgroup * 16u + own) * ROW + part;
    let own_shares = (subgroup * 16u + own) * ROW + part;

    // The first keys and values are on their way while queries are brought in, those of a tile
    // while the one before is multiplied.
    let k = (params.k + outer * params.k_outer) / 4u + h * HEAD;
    let v = (params.v + outer * params.v_outer) / 4u + h * HEAD;
    let last_key = params.keys - 1u;
    //# for l in LOADS
    let key_$l = ($lu * SIZE + lane) / HEAD;
    let four_$l = ($lu * SIZE + lane) % HEAD;
    let to_$l = key_$l * HEAD_ROW + four_$l;
    // The last key stands in for those beyond it, which nobody sees.
    let from_$l = min(key_$l, last_key);
    var next_k_$l = arena[k + from_$l * params.k_inner / 4u + four_$l];
    var next_v_$l = arena[v + from_$l * params.v_inner / 4u + four_$l];
    //# end

    //# for d in DEPTH
    workgroupBarrier();
    for (var i = part; i < 4u; i += SHARE) {
        shares[own_shares - part + i] = vec4<f16>(arena[q + 4u * $du + i]);
    }
    workgroupBarrier();
    let q_$d = coopLoadT<coop_mat16x16<f16, A>>(&shares[subgroup * 16u * ROW], ROW);
    var sum_$d = coop_mat16x16<f32, C>();
    //# end
    var largest = LOWEST;
    var divisor = 0.0;

    //# for pass in 2
    if ($passu == 1u) | (ONCE == 0u) {
        for (var tile = 0u; tile < params.keys; tile += KEYS) {
            // All are done with the tile before.
            workgroupBarrier();
            //# for l in LOADS
            if key_$l < KEYS {
                k_tile[to_$l] = vec4<f16>(next_k_$l);
                v_tile[to_$l] = vec4<f16>(next_v_$l);
            }
            //# end
            if MASK == 1u && lane < KEYS {
                let key = min(tile + lane, last_key);
                shown[lane] = load(params.mask + outer * params.mask_outer + key);
            }
            workgroupBarrier();
            if ONCE == 0u {
                // After the last tile the first again, for the second time.
                let next = select(0u, tile + KEYS, tile + KEYS < params.keys);
                //# for l in LOADS
                let key_next_$pass_$l = min(next + key_$l, last_key);
                next_k_$l = arena[k + key_next_$pass_$l * params.k_inner / 4u + four_$l];
                if ($passu == 1u) | (next == 0u) {
                    next_v_$l = arena[v + key_next_$pass_$l * params.v_inner / 4u + four_$l];
                }
                //# end
            }
            //# for n in KEY_TILES
            var score_$pass_$n = coop_mat16x16<f32, C>();
            //# for d in DEPTH
            let k_$pass_$n_$d = coopLoad<coop_mat16x16<f16, B>>(
                &k_tile[16u * $nu * HEAD_ROW + 4u * $du],
                HEAD_ROW,
            );
            score_$pass_$n = coopMultiplyAdd(q_$d, k_$pass_$n_$d, score_$pass_$n);
            //# end
            coopStoreT(
                score_$pass_$n,
                &scores[subgroup * 16u * ROW + 4u * $nu],
                ROW,
            );
            //# end
            workgroupBarrier();

            //# for f in FOURS
            let column_$pass_$f = 4u * (SHARE * $fu + part);
            let is_seen_$pass_$f = seen(position, tile + column_$pass_$f, column_$pass_$f);
            let scaled_$pass_$f = select(
                vec4(LOWEST),
                params.scale * scores[own_scores + SHARE * $fu],
                is_seen_$pass_$f,
            );
            //# end
            if ($passu == 0u) | (ONCE == 1u) {
                //# for f in FOURS
                largest = max(largest, largest4(scaled_$pass_$f));
                //# end
                largest = max(largest, subgroupShuffleXor(largest, 1u));
                if SHARE == 4u {
                    largest = max(largest, subgroupShuffleXor(largest, 2u));
                }
            }
            if $passu == 1u {
                //# for f in FOURS
                let share_$pass_$f = vec4<f16>(select(
                    vec4(0.0),
                    exp(scaled_$pass_$f - largest),
                    is_seen_$pass_$f,
                ));
                divisor += dot(vec4<f32>(share_$pass_$f), vec4(1.0));
                shares[own_shares + SHARE * $fu] = share_$pass_$f;
                //# end
            }
            workgroupBarrier();
            if $passu == 1u {
                //# for n in KEY_TILES
                let share_of_$pass_$n = coopLoadT<coop_mat16x16<f16, A>>(
                    &shares[subgroup * 16u * ROW + 4u * $nu],
                    ROW,
                );
                //# for d in DEPTH
                let v_$pass_$n_$d = coopLoadT<coop_mat16x16<f16, B>>(
                    &v_tile[16u * $nu * HEAD_ROW + 4u * $du],
                    HEAD_ROW,
                );
                sum_$d = coopMultiplyAdd(share_of_$pass_$n, v_$pass_$n_$d, sum_$d);
                //# end
                //# end
            }
        }
    }
    //# end

    divisor += subgroupShuffleXor(divisor, 1u);
    if SHARE == 4u {
        divisor += subgroupShuffleXor(divisor, 2u);
    }
    let y = (params.y + outer * params.y_outer + query * params.y_inner) / 4u + h * HEAD;
    //# for d in DEPTH
    workgroupBarrier();
    coopStoreT(sum_$d, &scores[subgroup * 16u * ROW], ROW);
    workgroupBarrier();
    if is_row && query < params.queries {
        for (var i = part; i < 4u; i += SHARE) {
            // A query that sees no key gets zeros.
            let result = scores[own_scores - part + i] / divisor;
            arena[y + 4u * $du + i] = select(result, vec4(0.0), divisor == 0.0);
        }
    }
    //# end
}
