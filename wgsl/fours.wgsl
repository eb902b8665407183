// What stands in place of the prelude before kernels that take the arena four elements at a time
// and everything else one by one. Offsets count elements; of what is taken in fours they are
// multiples of four. Not a kernel.

// All values of the program, as floats.
@group(0) @binding(1) var<storage, read_write> arena: array<vec4<f32>>;
// The weights of the step, packed.
@group(0) @binding(2) var<storage, read> weights: array<f32>;
// The run: rows in use, three unused words, the state slot of each row.
@group(0) @binding(3) var<storage, read> run: array<u32>;
// The state store, [slots, elements] for each state; bound to the kernels that use it.
@group(0) @binding(4) var<storage, read_write> states: array<f32>;

const RUN_SLOTS: u32 = 4u;

fn load(i: u32) -> f32 {
    return arena[i / 4u][i % 4u];
}

fn store(i: u32, x: f32) {
    arena[i / 4u][i % 4u] = x;
}

fn group_number(group: vec3<u32>, groups: vec3<u32>) -> u32 {
    return group.y * groups.x + group.x;
}
