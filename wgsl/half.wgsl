// Weights of products in half precision, in the same buffer as the others; offsets count halves.
// Products and sums are in single precision. Not a kernel.

@group(0) @binding(5) var<storage, read> halves: array<vec4<f16>>;

fn weight_at(i: u32) -> f32 {
    return f32(halves[i / 4u][i % 4u]);
}

// Four in a row; `i` is a multiple of four.
fn weight4_at(i: u32) -> vec4<f32> {
    return vec4<f32>(halves[i / 4u]);
}

// What weights are that stay in registers.
alias Kept = vec4<f16>;
