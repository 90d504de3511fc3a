//! The device's configuration space (virtio 1.3 section 5.11.4), for frontends that ask the daemon for it.

/// Bytes of the tag field.
pub const TAG_LEN_MAX: usize = 36;
/// Request queues that a session serves: a worker each, and vhost-user counts queues in a byte.
pub const REQUEST_QUEUES_MAX: u16 = 64;

/// A tag that the field cannot hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TagError {
    /// Nothing to mount by.
    #[error("the tag is empty; give the name that the guest mounts, as in --tag myfs")]
    Empty,
    /// Longer than the field.
    #[error("the tag \"{0}\" has {len} bytes; at most {TAG_LEN_MAX} fit", len = .0.len())]
    TooLong(String),
    /// A NUL ends the field's contents.
    #[error("the tag contains a NUL byte")]
    Nul,
}

/// `struct virtio_fs_config`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigSpace {
    bytes: [u8; TAG_LEN_MAX + 4],
}

impl ConfigSpace {
    /// A space with `tag` and `request_queues`.
    pub fn new(tag: &str, request_queues: u16) -> Result<ConfigSpace, TagError> {
        if tag.is_empty() {
            return Err(TagError::Empty);
        }
        if tag.len() > TAG_LEN_MAX {
            return Err(TagError::TooLong(tag.to_owned()));
        }
        if tag.contains('\0') {
            return Err(TagError::Nul);
        }
        let mut bytes = [0; TAG_LEN_MAX + 4];
        bytes[..tag.len()].copy_from_slice(tag.as_bytes());
        bytes[TAG_LEN_MAX..].copy_from_slice(&u32::from(request_queues).to_le_bytes());
        Ok(ConfigSpace { bytes })
    }

    /// `len` bytes from `offset` on; behind the end there are zeroes.
    pub fn read(&self, offset: u32, len: u32) -> Vec<u8> {
        let at = |i: u32| self.bytes.get(i as usize).copied().unwrap_or(0);
        (offset..offset.saturating_add(len)).map(at).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_space_holds_tag_and_queues_and_zeroes_behind() {
        let space = ConfigSpace::new("myfs", 4).unwrap();
        let bytes = space.read(0, 60);
        assert_eq!(&bytes[..5], b"myfs\0");
        assert_eq!(bytes[36..40], 4u32.to_le_bytes());
        assert_eq!(bytes[40..], [0; 20]);
        assert_eq!(space.read(36, 4), 4u32.to_le_bytes());
    }

    #[test]
    fn tags_that_do_not_fit_are_refused() {
        assert!(ConfigSpace::new(&"t".repeat(36), 1).is_ok());
        assert!(matches!(ConfigSpace::new(&"t".repeat(37), 1), Err(TagError::TooLong(_))));
        assert_eq!(ConfigSpace::new("", 1), Err(TagError::Empty));
        assert_eq!(ConfigSpace::new("a\0b", 1), Err(TagError::Nul));
    }
}
