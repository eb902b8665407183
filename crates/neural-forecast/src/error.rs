//! The one error of this crate: a kind to branch on and a chain of messages to read.
//!
//! Not a carrier of foreign error types: their text becomes part of the message, so that the
//! public interface does not change with a dependency.

use std::fmt::{self, Display};
use std::io;
use std::sync::Arc;

/// `Result` with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, coarsely enough to branch on (exit code, HTTP status, retry).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The operating system refused a read, a write or a rename.
    Io,
    /// Input series, features or stamps are missing, malformed or inconsistent.
    Data,
    /// A checkpoint's files are malformed, inconsistent or not what they claim to be.
    Checkpoint,
    /// A configuration asks for something impossible (a horizon of 0, an unknown scaler).
    Config,
    /// A valid request that this build or this model cannot serve.
    Unsupported,
    /// A device is absent, lost or out of memory.
    Device,
    /// The caller asked for something meaningless (an option's value, a wrong shape).
    Usage,
}

impl ErrorKind {
    /// The kind's name in lower case, as logs and JSON print it.
    pub fn as_str(self) -> &'static str {
        match self {
            ErrorKind::Io => "io",
            ErrorKind::Data => "data",
            ErrorKind::Checkpoint => "checkpoint",
            ErrorKind::Config => "config",
            ErrorKind::Unsupported => "unsupported",
            ErrorKind::Device => "device",
            ErrorKind::Usage => "usage",
        }
    }
}

impl Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An opaque error: one [`ErrorKind`] and messages from the outermost context to the cause.
///
/// It prints as one line, `outer: inner: cause`, and is one pointer wide and cheap to clone.
#[derive(Clone)]
pub struct Error(Arc<Link>);

struct Link {
    kind: ErrorKind,
    message: String,
    cause: Option<Error>,
}

impl Error {
    /// An error of `kind` that says `message`: lower case, naming the thing, what was expected
    /// and what was found.
    #[cold]
    pub fn new(kind: ErrorKind, message: impl Display) -> Self {
        Error(Arc::new(Link { kind, message: message.to_string(), cause: None }))
    }

    /// The same error with `context` in front: `context: what it said before`.
    #[cold]
    #[must_use]
    pub fn context(self, context: impl Display) -> Self {
        let kind = self.kind();
        Error(Arc::new(Link { kind, message: context.to_string(), cause: Some(self) }))
    }

    /// What went wrong, coarsely.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    #[cold]
    pub(crate) fn data(message: impl Display) -> Self {
        Error::new(ErrorKind::Data, message)
    }

    #[cold]
    pub(crate) fn usage(message: impl Display) -> Self {
        Error::new(ErrorKind::Usage, message)
    }

    #[cold]
    pub(crate) fn unsupported(message: impl Display) -> Self {
        Error::new(ErrorKind::Unsupported, message)
    }
}

impl Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut link = Some(self);
        let mut first = true;
        while let Some(error) = link {
            if !first {
                f.write_str(": ")?;
            }
            first = false;
            f.write_str(&error.0.message)?;
            link = error.0.cause.as_ref();
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Error({}: {self})", self.kind())
    }
}

// `source` stays `None` on purpose: `Display` prints the whole chain, and reporters that walk
// `source` would print each cause twice.
impl std::error::Error for Error {}

impl From<io::Error> for Error {
    #[cold]
    fn from(error: io::Error) -> Self {
        Error::new(ErrorKind::Io, error)
    }
}

/// Adds context to the error of a `Result`.
#[allow(dead_code, reason = "which of the two a build uses depends on its features")]
pub(crate) trait ResultExt<T> {
    /// Puts `context` in front of the error.
    fn context(self, context: impl Display) -> Result<T>;
    /// As `context`, made only when there is an error.
    fn with_context<D: Display>(self, context: impl FnOnce() -> D) -> Result<T>;
}

impl<T, E: Into<Error>> ResultExt<T> for std::result::Result<T, E> {
    fn context(self, context: impl Display) -> Result<T> {
        self.map_err(|error| error.into().context(context))
    }

    fn with_context<D: Display>(self, context: impl FnOnce() -> D) -> Result<T> {
        self.map_err(|error| error.into().context(context()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_outer_then_inner_and_keeps_the_kind() {
        let inner: Result<()> = Err(Error::data("`y` is `abc`, expected a number"));
        let outer = inner.context("line 3").context("sales.csv").unwrap_err();
        assert_eq!(outer.to_string(), "sales.csv: line 3: `y` is `abc`, expected a number");
        assert_eq!(outer.kind(), ErrorKind::Data);
        assert_eq!(outer.kind().to_string(), "data");
    }

    #[test]
    fn io_errors_become_io_kind_and_debug_names_it() {
        let error = Error::from(io::Error::new(io::ErrorKind::NotFound, "no such file"));
        assert_eq!(error.kind(), ErrorKind::Io);
        assert_eq!(format!("{error:?}"), "Error(io: no such file)");
    }

    #[test]
    fn is_small_and_shareable() {
        fn shareable<T: Send + Sync + Clone + 'static>() {}
        shareable::<Error>();
        assert_eq!(size_of::<Error>(), size_of::<usize>());
    }
}
