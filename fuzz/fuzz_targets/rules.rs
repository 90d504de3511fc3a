//! Any text as a rule of ids and as a map of attributes: reading it ends, with rules or the place of a mistake, and
//! what was read translates any id and any name.
#![no_main]

use std::ffi::CString;

use gatherfs::host::{IdMap, IdRule, Translation, XattrMap};
use gatherfs::types::{GuestUid, HostUid};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (Vec<String>, String, Vec<u8>, u32)| {
    let (rules, map, name, id) = input;
    let rules: Vec<IdRule> = rules.iter().filter_map(|r| r.parse().ok()).collect();
    if let Ok(users) = IdMap::new(&rules) {
        let ids = Translation { users, ..Translation::default() };
        let host = ids.host_uid(GuestUid(id));
        // No rule makes an id of what is none.
        assert!(id != u32::MAX || host == Ok(HostUid(u32::MAX)));
        assert!(id == u32::MAX || host != Ok(HostUid(u32::MAX)));
    }
    if let Ok(map) = map.parse::<XattrMap>() {
        if let Some(shown) = map.to_guest(&name) {
            assert!(name.ends_with(shown) && (name.is_empty() || !shown.is_empty()));
        }
        let name = CString::new(name).unwrap_or_default();
        if let Ok(on_host) = map.to_host(&name) {
            assert!(on_host.to_bytes().ends_with(name.to_bytes()));
        }
    }
});
