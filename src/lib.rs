//! gatherfs
