//! The runtime's error types: a plan that does not fit together, and a device that cannot do its
//! part.
//!
//! Contract breaches (a wrong slice length handed to a program, say) are not errors: they panic
//! with a message that says whose bug it is.

use std::fmt;

/// A plan that was built wrongly: mismatched shapes, an unknown name, an op used outside its rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanError {
    place: String,
    message: String,
}

impl PlanError {
    /// An error at `place` (usually ``op `linear` (encoder.0.q)``).
    #[cold]
    pub fn new(place: impl Into<String>, message: impl Into<String>) -> Self {
        PlanError { place: place.into(), message: message.into() }
    }

    /// Where in the plan it happened.
    pub fn place(&self) -> &str {
        &self.place
    }
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

impl std::error::Error for PlanError {}

/// What kind of failure a device reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceErrorKind {
    /// The device has too little memory, or a configured limit was reached.
    OutOfMemory,
    /// The device went away; everything resident on it is gone.
    Lost,
    /// A kernel or program could not be built for this device.
    Compile,
    /// The device cannot do what was asked, and says why.
    Unsupported,
    /// A weight is missing or has another shape than the plan declares.
    Weights,
    /// The run was cancelled at a yield point; its outputs are undefined, its states unchanged.
    Cancelled,
    /// A kernel failed while it ran.
    Execution,
}

/// What only the device can know and the caller could not foresee.
#[derive(Debug, Clone)]
pub struct DeviceError {
    kind: DeviceErrorKind,
    message: String,
}

impl DeviceError {
    /// An error of `kind`; the message names the thing, what was expected and what was found.
    #[cold]
    pub fn new(kind: DeviceErrorKind, message: impl Into<String>) -> Self {
        DeviceError { kind, message: message.into() }
    }

    /// Which kind of failure.
    pub fn kind(&self) -> DeviceErrorKind {
        self.kind
    }
}

impl fmt::Display for DeviceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            DeviceErrorKind::OutOfMemory => "out of memory",
            DeviceErrorKind::Lost => "device lost",
            DeviceErrorKind::Compile => "cannot compile",
            DeviceErrorKind::Unsupported => "unsupported",
            DeviceErrorKind::Weights => "weights",
            DeviceErrorKind::Cancelled => "cancelled",
            DeviceErrorKind::Execution => "execution failed",
        };
        write!(f, "{kind}: {}", self.message)
    }
}

impl std::error::Error for DeviceError {}

impl From<PlanError> for DeviceError {
    fn from(error: PlanError) -> Self {
        DeviceError::new(DeviceErrorKind::Compile, error.to_string())
    }
}
