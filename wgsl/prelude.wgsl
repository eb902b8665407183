// What every kernel is given. Not a kernel: it stands before each kernel's own text.
//
// A kernel declares `params` (binding 0, uniform, its own struct of words) and an entry point whose
// workgroups are numbered by `group_number`. Offsets into buffers count 32-bit elements.

// All values of the program, its scratch and its constants; bits, because floats and integers share
// it and integers must survive as they are (small ones are denormal floats).
@group(0) @binding(1) var<storage, read_write> arena: array<u32>;
// The weights of the step, packed.
@group(0) @binding(2) var<storage, read> weights: array<f32>;
// The run: rows in use, three unused words, the state slot of each row.
@group(0) @binding(3) var<storage, read> run: array<u32>;
// The state store, [slots, elements] for each state; bound to the kernels that use it.
@group(0) @binding(4) var<storage, read_write> states: array<f32>;

const RUN_SLOTS: u32 = 4u;

fn load(i: u32) -> f32 {
    return bitcast<f32>(arena[i]);
}

fn store(i: u32, x: f32) {
    arena[i] = bitcast<u32>(x);
}

// Grids are laid out in two dimensions, because one holds 65,535 workgroups only.
fn group_number(group: vec3<u32>, groups: vec3<u32>) -> u32 {
    return group.y * groups.x + group.x;
}
