//! The FUSE protocol, version 7.45: bytes to [`Operation`], results to bytes. Pure: it does no I/O,
//! knows nothing of guests, queues or files, and holds no `unsafe`.
#![forbid(unsafe_code)]

pub mod abi;
mod cursor;
pub mod dirent;
mod extension;
mod init;
mod opcode;
mod operation;

pub use extension::{Extensions, SecurityLabel, SupplementaryGroup};
pub use init::{InitRequest, Limits, Negotiated, SessionError, negotiate};
pub use opcode::Opcode;
pub use operation::{HandleOrNode, Operation, RequestHeader, SetTime, Setattr, decode, decode_header};
