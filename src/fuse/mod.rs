//! The FUSE protocol, version 7.45: decodes requests to [`Operation`] and encodes replies. It does no I/O and knows nothing of
//! guests, queues or files.
#![forbid(unsafe_code)]

pub mod abi;
mod cursor;
pub mod dirent;
mod extension;
mod init;
mod opcode;
mod operation;

pub use extension::{Extensions, SecurityLabel, SupplementaryGroup};
pub use init::{InitError, InitRequest, Limits, Negotiated, negotiate};
pub use opcode::Opcode;
pub use operation::{HandleOrNode, Operation, RequestHeader, SetTime, Setattr, decode, decode_header};
