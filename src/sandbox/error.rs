//! Why the process could not be confined.

use std::io;
use std::path::PathBuf;

/// Why the process could not be confined.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// A system call of the sandbox failed.
    #[error("cannot {step}: {source}{hint}", hint = hint(.source))]
    Step {
        /// What the call was for.
        step: &'static str,
        /// The error of the system call.
        source: io::Error,
    },
    /// The share cannot be opened.
    #[error("cannot share {path}: {source}")]
    Share {
        /// The directory or file.
        path: PathBuf,
        /// The error of the system call.
        source: io::Error,
    },
    /// The share is a fifo, a socket or a device.
    #[error("cannot share {0}: it is neither a directory nor a regular file; give one of these with --shared-dir")]
    Special(PathBuf),
    /// The root directory of the process is not a mount point, as after chroot(2): mounts cannot be made private there.
    #[error(
        "cannot make the sandbox's mounts: / is not a mount point, as in a plain chroot; {}",
        if *.is_root {
            "use --sandbox chroot, or bind the directory to itself (mount --bind DIR DIR) before chroot(1)"
        } else {
            "run gatherfsd outside of the chroot, or use --sandbox none and confine it by other means"
        }
    )]
    NoMountPoint {
        /// Whether the effective user is root.
        is_root: bool,
    },
    /// A user namespace cannot be made.
    #[error(
        "cannot make a user namespace for the sandbox: {0}; allow them to users (sysctl user.max_user_namespaces, \
         kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns), run gatherfsd as root, \
         or use --sandbox none and confine it by other means"
    )]
    UserNamespace(io::Error),
    /// The ids cannot be mapped: the option, the reason, and what to do.
    #[error("{0}")]
    IdMap(String),
    /// The seccomp filter cannot be installed.
    #[error("cannot restrict system calls: {0}; use --seccomp none where the kernel has no seccomp filters")]
    Seccomp(seccompiler::Error),
}

fn hint(source: &io::Error) -> &'static str {
    if source.kind() != io::ErrorKind::PermissionDenied {
        ""
    } else if rustix::process::geteuid().is_root() {
        "; root lacks a capability here: grant CAP_SYS_ADMIN for --sandbox namespace or CAP_SYS_CHROOT for chroot, \
         or use --sandbox none and confine it by other means"
    } else {
        "; run gatherfsd as root, or use --sandbox none and confine it by other means"
    }
}

/// Names the step that failed.
pub(super) trait Step<T> {
    fn step(self, step: &'static str) -> Result<T, JailError>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, step: &'static str) -> Result<T, JailError> {
        self.map_err(|e| JailError::Step { step, source: e.into() })
    }
}
