//! Extensions after the arguments of a create: blocks with a length and a type (FUSE 7.38; before that, since 7.36, only the
//! security context).

use std::ffi::CStr;

use super::abi::{EXT_GROUPS, EXT_SECURITY_MAX, ExtHeader, Secctx, init_flags};
use super::cursor::Cursor;
use super::init::Negotiated;
use crate::types::{Errno, GuestGid};

/// A supplementary group of the caller that a create needs: that of the parent directory, where the caller is a member of it.
/// Linux sends at most one (`fs/fuse/dir.c`).
pub type SupplementaryGroup = Option<GuestGid>;

/// The first minor version whose header has the length of the extensions.
const MINOR_WITH_LENGTH: u32 = 38;

/// The security label with which a file is to be created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SecurityLabel<'a> {
    /// The extended attribute, by the guest's name: `security.selinux`.
    pub name: &'a CStr,
    /// The value of the attribute.
    pub value: &'a [u8],
}

/// The extensions of a create.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Extensions<'a> {
    /// The caller's supplementary group.
    pub group: SupplementaryGroup,
    /// The label, where the guest's security module has one.
    pub label: Option<SecurityLabel<'a>>,
}

/// Whether the header of a request has no length of the extensions, so that they are all bytes after the last name.
pub fn follow_the_names(negotiated: Option<&Negotiated>) -> bool {
    negotiated.is_some_and(|a| a.has(init_flags::SECURITY_CTX) && a.minor < MINOR_WITH_LENGTH)
}

/// Decodes the extensions of a request. Blocks of unknown types are ignored. EINVAL for an impossible length, for a label without
/// SECURITY_CTX, for a second one, and, with SECURITY_CTX, for a create without a security block.
pub fn extensions<'a>(area: &'a [u8], negotiated: Option<&Negotiated>) -> Result<Extensions<'a>, Errno> {
    let has_labels = negotiated.is_some_and(|a| a.has(init_flags::SECURITY_CTX));
    let mut cursor = Cursor::new(area);
    let mut found = Extensions::default();
    let mut has_security_block = false;
    while !cursor.rest().is_empty() {
        let header: ExtHeader = cursor.take()?;
        let body_len = (header.size as usize).checked_sub(size_of::<ExtHeader>()).ok_or(Errno::EINVAL)?;
        let body = Cursor::new(cursor.take_bytes(body_len)?);
        match header.kind {
            EXT_GROUPS => found.group = one_group(body)?,
            // The type is the number of labels in the block.
            0..=EXT_SECURITY_MAX if !has_labels || has_security_block => return Err(Errno::EINVAL),
            0..=EXT_SECURITY_MAX => {
                has_security_block = true;
                found.label = one_label(header.kind, body)?;
            }
            _ => {}
        }
    }
    if has_labels && !has_security_block { Err(Errno::EINVAL) } else { Ok(found) }
}

fn one_group(mut body: Cursor<'_>) -> Result<SupplementaryGroup, Errno> {
    match body.take::<u32>()? {
        0 => Ok(None),
        1 => Ok(Some(GuestGid(body.take()?))),
        _ => Err(Errno::EINVAL),
    }
}

/// Linux sends one label or none.
fn one_label(count: u32, mut body: Cursor<'_>) -> Result<Option<SecurityLabel<'_>>, Errno> {
    match count {
        0 => return Ok(None),
        1 => {}
        _ => return Err(Errno::EINVAL),
    }
    let label: Secctx = body.take()?;
    let name = body.take_string()?;
    let value = body.take_bytes(label.size as usize)?;
    if name.is_empty() || value.is_empty() { Err(Errno::EINVAL) } else { Ok(Some(SecurityLabel { name, value })) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(size: u32, kind: u32, words: &[u32]) -> Vec<u8> {
        [size, kind].iter().chain(words).flat_map(|w| w.to_ne_bytes()).collect()
    }

    fn negotiated(minor: u32, flags: u64) -> Negotiated {
        Negotiated { flags, minor }
    }

    #[test]
    fn one_group_is_read_and_impossible_lengths_are_refused() {
        let group = |area: &[u8]| extensions(area, None).map(|e| e.group);
        assert_eq!(group(&[]), Ok(None));
        assert_eq!(group(&block(16, EXT_GROUPS, &[1, 77])), Ok(Some(GuestGid(77))));
        assert_eq!(group(&block(16, EXT_GROUPS, &[0, 77])), Ok(None));
        let two = [block(16, 99, &[0, 0]), block(16, EXT_GROUPS, &[1, 5])].concat();
        assert_eq!(group(&two), Ok(Some(GuestGid(5))), "what is not known is passed over");
        assert_eq!(group(&block(4, EXT_GROUPS, &[1, 5])), Err(Errno::EINVAL));
        assert_eq!(group(&block(4096, EXT_GROUPS, &[1, 5])), Err(Errno::EINVAL));
        assert_eq!(group(&block(16, EXT_GROUPS, &[2, 5])), Err(Errno::EINVAL));
    }

    #[test]
    fn one_label_is_read_where_labels_were_agreed_on() {
        let with = negotiated(45, init_flags::SECURITY_CTX);
        let mut area = block(40, 1, &[3, 0]);
        area.extend_from_slice(b"security.selinux\0abc\0\0\0\0");
        let label = SecurityLabel { name: c"security.selinux", value: b"abc" };
        assert_eq!(extensions(&area, Some(&with)), Ok(Extensions { group: None, label: Some(label) }));
        assert_eq!(extensions(&block(8, 0, &[]), Some(&with)), Ok(Extensions::default()), "no security module");
        assert_eq!(extensions(&[], Some(&with)), Err(Errno::EINVAL), "nothing is said of a label");
        assert_eq!(extensions(&area, Some(&negotiated(45, 0))), Err(Errno::EINVAL), "not negotiated");
        assert_eq!(extensions(&[&area[..], &area].concat(), Some(&with)), Err(Errno::EINVAL), "twice");
        for (at, byte) in [(4, 2), (8, 0), (8, 8), (16, 0)] {
            let mut bad = area.clone();
            bad[at] = byte;
            assert_eq!(extensions(&bad, Some(&with)), Err(Errno::EINVAL), "byte {at}");
        }
    }

    #[test]
    fn before_7_38_the_label_follows_the_names() {
        assert!(follow_the_names(Some(&negotiated(37, init_flags::SECURITY_CTX))));
        assert!(!follow_the_names(Some(&negotiated(37, 0))) && !follow_the_names(Some(&negotiated(38, init_flags::SECURITY_CTX))));
        assert!(!follow_the_names(None));
    }
}
