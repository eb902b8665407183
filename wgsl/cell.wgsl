// One step of a recurrent cell for four rows, the components of the vectors. Not a kernel.
//
// The sums of a gate are two, added once: `(W_ih·x + b_ih) + (W_hh·h + b_hh)`.

// 0 LSTM, 1 GRU, 2 tanh, 3 ReLU, 4 sLSTM.
override CELL: u32 = 0u;

// What a cell carries beside its output.
struct Carried {
    c: vec4<f32>,
    n: vec4<f32>,
    m: vec4<f32>,
}

struct Gates {
    first: array<vec4<f32>, 4>,
    second: array<vec4<f32>, 4>,
}

fn sigmoid4(x: vec4<f32>) -> vec4<f32> {
    return vec4(sigmoid(x.x), sigmoid(x.y), sigmoid(x.z), sigmoid(x.w));
}

fn tanh4(x: vec4<f32>) -> vec4<f32> {
    return vec4(tanh_of(x.x), tanh_of(x.y), tanh_of(x.z), tanh_of(x.w));
}

fn softplus4(x: vec4<f32>) -> vec4<f32> {
    return vec4(softplus(x.x), softplus(x.y), softplus(x.z), softplus(x.w));
}

fn sum_of(gates: Gates, gate: u32) -> vec4<f32> {
    return gates.first[gate] + gates.second[gate];
}

// The cell's output before a projection; `h` is what it was.
fn advance(gates: Gates, h: vec4<f32>, carried: ptr<function, Carried>) -> vec4<f32> {
    let a = sum_of(gates, 0u);
    switch CELL {
        case 0u: {
            let i = sigmoid4(a);
            let f = sigmoid4(sum_of(gates, 1u));
            let g = tanh4(sum_of(gates, 2u));
            let o = sigmoid4(sum_of(gates, 3u));
            let c = f * (*carried).c + i * g;
            (*carried).c = c;
            return o * tanh4(c);
        }
        case 1u: {
            let r = sigmoid4(a);
            let z = sigmoid4(sum_of(gates, 1u));
            let n = tanh4(gates.first[2] + r * gates.second[2]);
            return (1.0 - z) * n + z * h;
        }
        case 2u: {
            return tanh4(a);
        }
        case 3u: {
            return select(a, vec4(0.0), a < vec4(0.0));
        }
        default: {
            let f = sum_of(gates, 1u);
            let z = tanh4(sum_of(gates, 2u));
            let o = sigmoid4(sum_of(gates, 3u));
            let decayed = (*carried).m - softplus4(-f);
            let larger = select(a, decayed, decayed > a);
            let m = select(larger, a, (*carried).n == vec4(0.0));
            let ig = min(exp(a - m), vec4(1.0));
            let fg = min(exp(decayed - m), vec4(1.0));
            let c = fg * (*carried).c + ig * z;
            let n = fg * (*carried).n + ig;
            (*carried).c = c;
            (*carried).n = n;
            (*carried).m = m;
            return o * c / n;
        }
    }
}
