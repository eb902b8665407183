//! The files of a checkpoint: safetensors, whole networks, and the JSON beside and inside them.

use neural_forecast::checkpoint;

/// A safetensors file: header, names, shapes, ranges.
pub fn safetensors(bytes: &[u8]) {
    checkpoint::fuzz_safetensors(bytes);
}

/// A network's file, up to its plan.
pub fn network(bytes: &[u8]) {
    checkpoint::fuzz_network(bytes);
}

/// The `configuration.json` of a folder.
pub fn configuration(bytes: &[u8]) {
    checkpoint::fuzz_configuration(bytes);
}

/// The hyper-parameters of a network, as JSON.
pub fn hyper_parameters(bytes: &[u8]) {
    checkpoint::fuzz_hyper_parameters(bytes);
}
