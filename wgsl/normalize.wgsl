// `normalize`: statistics of what was observed of a window, and the window scaled by them. One
// workgroup a row and channel; for prefixes one a row and patch, whose window is all up to and
// including that patch.
//
// Sums are trees of a fixed shape around the mean, in two passes; medians are the element whose
// rank is in the middle, found by counting.

struct Params {
    x: u32,
    mask: u32,
    y: u32,
    statistics: u32,
    rows: u32,
    // Positions of a row, and channels; for prefixes patches, and steps of a patch.
    time: u32,
    channels: u32,
    // Positions that statistics are taken over.
    counted: u32,
    // Elements of the mask from a row to the next, a position to the next, a channel to the next.
    mask_row: u32,
    mask_step: u32,
    mask_channel: u32,
    // Learned map after scaling.
    weight: u32,
    bias: u32,
    // Store and new rows of running statistics, [3, channels] each.
    carried: u32,
    new_carried: u32,
    eps: f32,
    // The number of the zero rule, and the one inside the root.
    zero: f32,
    inside: f32,
}

override PREFIX: u32 = 0u;
override MASK: u32 = 0u;
// 1 where masked positions become 0.
override MASKED_ZERO: u32 = 0u;
override AFFINE: u32 = 0u;
override RUNNING: u32 = 0u;
// 0 zero, 1 mean, 2 lower median, 3 last, 4 minimum, 5 midrange.
override CENTER: u32 = 0u;
// 0 one, 1 deviation, 2 sample deviation, 3 deviation with eps inside, 4 median deviation, 5 range,
// 6 half range, 7 mean magnitude.
override SPREAD: u32 = 0u;
// 0 keep, 1 a number, 2 the centre's magnitude and a number, 3 collapse below a number.
override ZERO: u32 = 0u;
override ASINH: u32 = 0u;

@group(0) @binding(0) var<uniform> params: Params;

// What the workgroup looks at: row, channel (or patch), and how many positions of it count.
var<private> row: u32;
var<private> channel: u32;
var<private> length: u32;

var<workgroup> found: atomic<u32>;

fn element(i: u32) -> f32 {
    if PREFIX == 1u {
        return load(params.x + row * params.time * params.channels + i);
    }
    return load(params.x + (row * params.time + i) * params.channels + channel);
}

fn observed(i: u32) -> bool {
    if MASK == 0u {
        return true;
    }
    var at = params.mask + row * params.mask_row;
    if PREFIX == 1u {
        at += (i / params.channels) * params.mask_step;
        at += (i % params.channels) * params.mask_channel;
    } else {
        at += i * params.mask_step + channel * params.mask_channel;
    }
    return load(at) != 0.0;
}

// The lower median of the observed |x - from|, or of x itself; NaN if any of them is.
fn lower_median(lane: u32, n: f32, magnitude: bool, origin: f32) -> f32 {
    workgroupBarrier();
    if lane == 0u {
        atomicStore(&found, bitcast<u32>(nan()));
    }
    workgroupBarrier();
    let wanted = floor((n - 1.0) * 0.5);
    var unknown = 0.0;
    for (var i = lane; i < length; i += LANES) {
        if !observed(i) {
            continue;
        }
        var candidate = element(i);
        if magnitude {
            candidate = abs(candidate - origin);
        }
        if is_nan(candidate) {
            unknown = 1.0;
            continue;
        }
        var less = 0.0;
        var same = 0.0;
        for (var j = 0u; j < length; j++) {
            if !observed(j) {
                continue;
            }
            var other = element(j);
            if magnitude {
                other = abs(other - origin);
            }
            less += select(0.0, 1.0, other < candidate);
            same += select(0.0, 1.0, other == candidate);
        }
        if less <= wanted && wanted < less + same {
            atomicStore(&found, bitcast<u32>(candidate));
        }
    }
    let any = max_all(lane, unknown);
    let median = bitcast<f32>(atomicLoad(&found));
    return select(median, nan(), any > 0.0);
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let number = group_number(group, groups);
    let each = select(params.channels, params.time, PREFIX == 1u);
    if number / each >= params.rows {
        return;
    }
    row = number / each;
    channel = number % each;
    length = select(params.counted, (channel + 1u) * params.channels, PREFIX == 1u);

    // Count, sum, sum of magnitudes, extremes, last.
    var count = 0.0;
    var sum = 0.0;
    var magnitudes = 0.0;
    var largest = negative_infinity();
    var smallest = negative_infinity();
    var unknown = 0.0;
    var last = -1.0;
    for (var i = lane; i < length; i += LANES) {
        if !observed(i) {
            continue;
        }
        let x = element(i);
        count += 1.0;
        sum += x;
        magnitudes += abs(x);
        largest = select(largest, x, x > largest);
        smallest = select(smallest, -x, -x > smallest);
        unknown = select(unknown, 1.0, is_nan(x));
        last = f32(i);
    }
    let n = sum_all(lane, count);
    let some = max(n, 1.0);
    var mean = sum_all(lane, sum) / some;
    var deviations = 0.0;
    for (var i = lane; i < length; i += LANES) {
        if observed(i) {
            deviations += element(i) - mean;
        }
    }
    // The first mean is off by the rounding of a large sum.
    mean += sum_all(lane, deviations) / some;
    var squared = 0.0;
    for (var i = lane; i < length; i += LANES) {
        if observed(i) {
            let d = element(i) - mean;
            squared += d * d;
        }
    }
    var squares = sum_all(lane, squared);
    if n == 0.0 {
        mean = 0.0;
    }

    // Joined with what earlier runs saw (Chan, Golub and LeVeque, 1979).
    var total = n;
    if RUNNING == 1u {
        let states_channels = select(params.channels, 1u, PREFIX == 1u);
        let k = select(channel, 0u, PREFIX == 1u);
        let slot = params.carried + run[RUN_SLOTS + row] * 3u * states_channels;
        let before = states[slot + k];
        let before_mean = states[slot + states_channels + k];
        let before_squares = states[slot + 2u * states_channels + k];
        total = before + n;
        if total > 0.0 {
            let delta = mean - before_mean;
            squares = before_squares + squares + delta * delta * before * n / total;
            mean = before_mean + delta * n / total;
        } else {
            mean = before_mean;
            squares = before_squares;
        }
        if lane == 0u && (PREFIX == 0u || channel + 1u == params.time) {
            let to = params.new_carried + row * 3u * states_channels + k;
            store(to, total);
            store(to + states_channels, mean);
            store(to + 2u * states_channels, squares);
        }
    }

    var center = 0.0;
    var spread = 1.0;
    let deviation = sqrt(squares / max(total, 1.0));
    let high = max_all(lane, largest);
    let low = -max_all(lane, smallest);
    let nothing_known = max_all(lane, unknown) > 0.0;
    let position = max_all(lane, last);
    if CENTER == 1u {
        center = mean;
    }
    if CENTER == 2u || SPREAD == 4u {
        let median = lower_median(lane, n, false, 0.0);
        if CENTER == 2u {
            center = median;
        }
        if SPREAD == 4u {
            spread = lower_median(lane, n, true, median);
            if spread == 0.0 {
                spread = deviation * 0.67448975;
            }
        }
    }
    if CENTER == 3u {
        center = element(u32(max(position, 0.0)));
    }
    if CENTER == 4u {
        center = select(low, nan(), nothing_known);
    }
    if CENTER == 5u {
        center = select((low + high) * 0.5, nan(), nothing_known);
    }
    if SPREAD == 1u {
        spread = deviation;
    }
    if SPREAD == 2u {
        spread = sqrt(squares / max(total - 1.0, 1.0));
    }
    if SPREAD == 3u {
        spread = sqrt(squares / max(total, 1.0) + params.inside);
    }
    if SPREAD == 5u {
        spread = select(high - low, nan(), nothing_known);
    }
    if SPREAD == 6u {
        spread = select((high - low) * 0.5, nan(), nothing_known);
    }
    // Summed whatever the spread, because every invocation must.
    let magnitude = sum_all(lane, magnitudes) / some;
    if SPREAD == 7u {
        spread = magnitude;
    }
    if ZERO == 1u && spread == 0.0 {
        spread = params.zero;
    }
    if ZERO == 2u && spread == 0.0 {
        spread = abs(center) + params.zero;
    }
    spread += params.eps;
    if total == 0.0 {
        center = 0.0;
        spread = 1.0;
    }
    if lane == 0u {
        if PREFIX == 1u {
            let to = params.statistics + (row * params.time + channel) * 2u;
            store(to, center);
            store(to + 1u, spread);
        } else {
            let to = params.statistics + row * 2u * params.channels + channel;
            store(to, center);
            store(to + params.channels, spread);
        }
    }

    var divisor = spread;
    if ZERO == 3u && spread < params.zero {
        divisor = 1.0;
    }
    let begin = select(0u, channel * params.channels, PREFIX == 1u);
    let end = select(params.time, (channel + 1u) * params.channels, PREFIX == 1u);
    for (var i = begin + lane; i < end; i += LANES) {
        var y = (element(i) - center) / divisor;
        if ASINH == 1u {
            y = asinh_of(y);
        }
        if AFFINE == 1u {
            let k = select(channel, i % params.channels, PREFIX == 1u);
            y = y * weights[params.weight + k] + weights[params.bias + k];
        }
        if MASKED_ZERO == 1u && !observed(i) {
            y = 0.0;
        }
        if PREFIX == 1u {
            store(params.y + row * params.time * params.channels + i, y);
        } else {
            store(params.y + (row * params.time + i) * params.channels + channel, y);
        }
    }
}
