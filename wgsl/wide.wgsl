// What stands in place of the prelude before kernels that read and write four elements at a time.
// Offsets count fours. Not a kernel.

// All values of the program, as floats.
@group(0) @binding(1) var<storage, read_write> arena: array<vec4<f32>>;
// The weights of the step, packed; those of products in half precision.
@group(0) @binding(2) var<storage, read> weights: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read> halves: array<vec4<f16>>;

fn group_number(group: vec3<u32>, groups: vec3<u32>) -> u32 {
    return group.y * groups.x + group.x;
}
