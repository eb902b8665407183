// `sample`: draws of a distribution by Philox 4x32-10 (Salmon et al., 2011). One invocation a draw.

struct Params {
    parameters: u32,
    seed: u32,
    y: u32,
    count: u32,
    steps: u32,
    samples: u32,
}

// 0 normal, 1 Student's t.
override DISTRIBUTION: u32 = 0u;

@group(0) @binding(0) var<uniform> params: Params;

// The upper word of a product of two words, by halves.
fn high_word(a: u32, b: u32) -> u32 {
    let low = (a & 0xffffu) * (b & 0xffffu);
    let first = (a >> 16u) * (b & 0xffffu) + (low >> 16u);
    let second = (a & 0xffffu) * (b >> 16u) + (first & 0xffffu);
    return (a >> 16u) * (b >> 16u) + (first >> 16u) + (second >> 16u);
}

fn philox(counter: vec4<u32>, seed: vec2<u32>) -> vec4<u32> {
    var c = counter;
    var k = seed;
    for (var round = 0u; round < 10u; round++) {
        if round > 0u {
            k += vec2(0x9e3779b9u, 0xbb67ae85u);
        }
        let a = 0xd2511f53u;
        let b = 0xcd9e8d57u;
        c = vec4(
            high_word(b, c.z) ^ c.y ^ k.x,
            b * c.z,
            high_word(a, c.x) ^ c.w ^ k.y,
            a * c.x,
        );
    }
    return c;
}

// In (0, 1): the upper 23 bits and a half, exact.
fn uniform_of(word: u32) -> f32 {
    return (f32(word >> 9u) + 0.5) / 8388608.0;
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = group_number(group, groups) * 64u + lane;
    if i >= params.count {
        return;
    }
    let draw = i % params.samples;
    let step = (i / params.samples) % params.steps;
    let row = i / params.samples / params.steps;
    let seed = vec2(arena[params.seed + row * 2u], arena[params.seed + row * 2u + 1u]);
    let words = philox(vec4(draw, step, 0u, 0u), seed);
    let u = uniform_of(words.x);
    let turn = cos_sin_turns(uniform_of(words.y)).x;
    if DISTRIBUTION == 0u {
        let at = params.parameters + (i / params.samples) * 2u;
        store(params.y + i, load(at) + load(at + 1u) * sqrt(-2.0 * log(u)) * turn);
    } else {
        let at = params.parameters + (i / params.samples) * 3u;
        let freedom = load(at);
        let radius = sqrt(freedom * exp_minus_one(-2.0 / freedom * log(u)));
        store(params.y + i, load(at + 1u) + load(at + 2u) * radius * turn);
    }
}
