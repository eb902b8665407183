// `empirical_quantiles`: each sample to the place of its rank, then linear interpolation between
// the two ranks around a level. One invocation a sample, then one a quantile.

struct Params {
    x: u32,
    // [rows, samples], in order.
    ranked: u32,
    y: u32,
    rows: u32,
    samples: u32,
    levels: u32,
    // For each level: rank below, rank above, distance from the one below.
    places: u32,
}

// 0 puts samples in order, 1 picks quantiles.
override PICK: u32 = 0u;

@group(0) @binding(0) var<uniform> params: Params;

fn rank(i: u32) {
    let row = i / params.samples;
    let own = i % params.samples;
    let x = params.x + row * params.samples;
    let sample = load(x + own);
    var before = 0u;
    for (var j = 0u; j < params.samples; j++) {
        let other = load(x + j);
        // Of equal ones the earlier is first; NaN goes to some place, and is looked for later.
        before += select(0u, 1u, other < sample || (other == sample && j < own));
    }
    store(params.ranked + row * params.samples + before, sample);
}

fn pick(i: u32) {
    let row = i / params.levels;
    let level = i % params.levels;
    let place = params.places + level * 3u;
    let ranked = params.ranked + row * params.samples;
    let below = load(ranked + arena[place]);
    let above = load(ranked + arena[place + 1u]);
    var y = below + (above - below) * load(place + 2u);
    for (var j = 0u; j < params.samples; j++) {
        if is_nan(load(params.x + row * params.samples + j)) {
            y = nan();
        }
    }
    store(params.y + i, y);
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = group_number(group, groups) * 64u + lane;
    if i >= params.rows * select(params.samples, params.levels, PICK == 1u) {
        return;
    }
    if PICK == 1u {
        pick(i);
    } else {
        rank(i);
    }
}
