// Functions of one number that WGSL lacks or lets be rougher than a forecast may be: sine and
// cosine may be off by 2^-11, and no shader may rely on a comparison with NaN being kept. Not a
// kernel.
//
// Angles are in turns, so that their reduction is exact.

fn is_nan(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7fffffffu) > 0x7f800000u;
}

// A NaN that no compiler sees as a constant, which would be an error.
fn nan() -> f32 {
    var bits = 0x7fc00000u;
    return bitcast<f32>(bits);
}

fn negative_infinity() -> f32 {
    var bits = 0xff800000u;
    return bitcast<f32>(bits);
}

fn sigmoid(x: f32) -> f32 {
    // e^-|x| cannot overflow.
    let e = exp(-abs(x));
    let r = 1.0 / (1.0 + e);
    return select(e * r, r, x >= 0.0);
}

fn tanh_of(x: f32) -> f32 {
    let a = abs(x);
    let e = exp(-2.0 * a);
    let wide = (1.0 - e) / (1.0 + e);
    // Below 0.1 the difference cancels; the next term of the series is 2e-11 of the result there.
    let s = x * x;
    let near = a * (1.0 + s * (-1.0 / 3.0 + s * (2.0 / 15.0 - s * (17.0 / 315.0))));
    let y = select(wide, near, a < 0.1);
    return select(y, -y, x < 0.0);
}

// ln(1 + e) for e in [0, 1], with the rounding of 1 + e divided out.
fn log_one_plus(e: f32) -> f32 {
    let u = 1.0 + e;
    let d = u - 1.0;
    if d == 0.0 {
        return e;
    }
    return log(u) * (e / d);
}

fn softplus(x: f32) -> f32 {
    let positive = select(x, 0.0, x < 0.0);
    return positive + log_one_plus(exp(-abs(x)));
}

// e^x - 1.
fn exp_minus_one(x: f32) -> f32 {
    let near = x * (1.0 + x * (1.0 / 2.0 + x * (1.0 / 6.0 + x * (1.0 / 24.0 + x / 120.0))));
    return select(exp(x) - 1.0, near, abs(x) < 0.1);
}

// The error function, Abramowitz and Stegun 7.1.26: off by 1.5e-7 at most.
fn erf(x: f32) -> f32 {
    let a = abs(x);
    let t = 1.0 / (1.0 + 0.3275911 * a);
    let p = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027
        + t * 1.061405429))));
    let y = 1.0 - p * exp(-a * a);
    return select(y, -y, x < 0.0);
}

fn asinh_of(x: f32) -> f32 {
    let a = abs(x);
    let s = x * x;
    let near = a * (1.0 + s * (-1.0 / 6.0 + s * (3.0 / 40.0 - s * (15.0 / 336.0))));
    // Where the square overflows, the root is |x|.
    let wide = log(a + select(sqrt(s + 1.0), a, a > 1e9));
    let y = select(wide, near, a < 0.1);
    return select(y, -y, x < 0.0);
}

fn sinh_of(x: f32) -> f32 {
    let a = abs(x);
    let s = x * x;
    let near = a * (1.0 + s * (1.0 / 6.0 + s * (1.0 / 120.0 + s / 5040.0)));
    // In two factors, because e^|x| overflows before its half does.
    let root = exp(0.5 * a);
    let wide = (0.5 * root) * root - 0.5 / root / root;
    let y = select(wide, near, a < 0.3);
    return select(y, -y, x < 0.0);
}

// (cos, sin) of an angle in turns, |turns| up to some thousands: the polynomials of Cephes within
// an eighth of a turn, off by a last place or two.
fn cos_sin_turns(turns: f32) -> vec2<f32> {
    let quarters = round(turns * 4.0);
    let r = (turns - quarters * 0.25) * 6.2831855;
    let z = r * r;
    let s = r + r * z * (-1.6666654611e-1 + z * (8.3321608736e-3 - z * 1.9515295891e-4));
    let c = 1.0 - 0.5 * z
        + z * z * (4.166664568298827e-2 + z * (-1.388731625493765e-3 + z * 2.443315711809948e-5));
    switch u32(i32(quarters) & 3) {
        case 0u: { return vec2(c, s); }
        case 1u: { return vec2(-s, c); }
        case 2u: { return vec2(-c, -s); }
        default: { return vec2(s, -c); }
    }
}

// The numbers of `step/mod.rs`.
fn activate(function: u32, x: f32, slope: f32) -> f32 {
    switch function {
        // A comparison, not `max`: NaN stays NaN.
        case 1u: { return select(x, 0.0, x < 0.0); }
        case 2u: { return 0.5 * x * (1.0 + erf(x * 0.70710678)); }
        case 3u: { return 0.5 * x * (1.0 + tanh_of(0.79788456 * (x + 0.044715 * x * x * x))); }
        case 4u: { return x * sigmoid(x); }
        case 5u: { return sigmoid(x); }
        case 6u: { return tanh_of(x); }
        case 7u: { return select(exp_minus_one(x), x, x > 0.0); }
        case 8u: { return softplus(x); }
        case 9u: { return select(x, x * slope, x < 0.0); }
        case 10u: {
            return 1.050701 * select(1.6732632 * exp_minus_one(x), x, x > 0.0);
        }
        default: { return x; }
    }
}
