// Weights of products in single precision. Not a kernel.

fn weight_at(i: u32) -> f32 {
    return weights[i];
}

// Four in a row; `i` is a multiple of four.
fn weight4_at(i: u32) -> vec4<f32> {
    return vec4(weights[i], weights[i + 1u], weights[i + 2u], weights[i + 3u]);
}

// What weights are that stay in registers.
alias Kept = vec4<f32>;
