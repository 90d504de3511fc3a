//! `--translate-uid` and `--translate-gid`: guest ids to host ids and back. Nothing else makes a host id of a guest id. Does not
//! know files or requests.

use std::fmt;
use std::str::FromStr;

use crate::types::{Errno, GuestGid, GuestUid, HostGid, HostUid};

/// The forms of rules, for messages.
const FORMS: &str = "guest:GUEST:HOST:COUNT, host:HOST:GUEST:COUNT, squash-guest:GUEST:HOST:COUNT, squash-host:HOST:GUEST:COUNT, \
     forbid-guest:GUEST:COUNT or map:GUEST:HOST:COUNT";

/// `count` ids from `first` on and what they are mapped to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct IdSpan {
    first: u32,
    count: u32,
    target: Target,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    /// Consecutive ids from this one on.
    From(u32),
    /// All to this one.
    Single(u32),
    /// Forbidden.
    Nothing,
}

impl IdSpan {
    /// The last id. Only a span that is not empty is kept in a map.
    fn last(&self) -> u32 {
        self.first + (self.count - 1)
    }

    fn overlaps(&self, other: &IdSpan) -> bool {
        self.first <= other.last() && other.first <= self.last()
    }
}

/// One rule of an option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdRule {
    text: String,
    to_host: Option<IdSpan>,
    to_guest: Option<IdSpan>,
}

impl fmt::Display for IdRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Why a rule, or two rules together, are invalid. Positions count characters from 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdRuleError {
    /// Unknown kind of rule.
    #[error("position 1: unknown kind of rule \"{0}\"; expected {FORMS}")]
    Kind(String),
    /// Too few or too many numbers.
    #[error("\"{kind}\" takes {wanted} numbers, not {got}; expected {FORMS}")]
    Fields {
        /// The kind of rule.
        kind: &'static str,
        /// How many numbers it has.
        wanted: usize,
        /// How many there are.
        got: usize,
    },
    /// Not a number.
    #[error("position {position}: invalid id \"{text}\"; expected a number from 0 to 4294967294")]
    Number {
        /// Position of its first character.
        position: usize,
        /// The text there.
        text: String,
    },
    /// A range that exceeds the ids.
    #[error("position {position}: {count} ids from {first} on exceed the last id, 4294967294; use a smaller count")]
    Beyond {
        /// Where the range's first id stands.
        position: usize,
        /// The range's first id.
        first: u32,
        /// Its length.
        count: u32,
    },
    /// Two rules for one id.
    #[error("rules \"{first}\" and \"{second}\" overlap: both map the {side}'s id {id}; use disjoint ranges")]
    Overlap {
        /// The rule that came first.
        first: String,
        /// The rule that came later.
        second: String,
        /// "guest" or "host".
        side: &'static str,
        /// The lowest id that is in both.
        id: u32,
    },
}

/// A number of a rule and its position.
#[derive(Clone, Copy)]
struct Field {
    position: usize,
    value: u32,
}

/// The ids from `first` on; `None` for an empty range.
fn span(first: Field, count: Field, target: Target) -> Result<Option<IdSpan>, IdRuleError> {
    // The last number, -1, means "no id" in all calls.
    if first.value.checked_add(count.value).is_none() {
        return Err(IdRuleError::Beyond { position: first.position, first: first.value, count: count.value });
    }
    Ok((count.value > 0).then_some(IdSpan { first: first.value, count: count.value, target }))
}

/// Maps `count` ids from `from` on to `to`.
fn squashed(from: Field, to: Field, count: Field) -> Result<Option<IdSpan>, IdRuleError> {
    span(to, Field { value: 1, ..to }, Target::Nothing)?;
    span(from, count, Target::Single(to.value))
}

/// Maps `count` ids from `from` on to those from `to` on.
fn shifted(from: Field, to: Field, count: Field) -> Result<Option<IdSpan>, IdRuleError> {
    span(to, count, Target::Nothing)?;
    span(from, count, Target::From(to.value))
}

impl FromStr for IdRule {
    type Err = IdRuleError;

    /// `KIND:NUMBER:NUMBER[:NUMBER]`, where the colon may be any character that is no letter, digit, `-` or `_`.
    fn from_str(text: &str) -> Result<IdRule, IdRuleError> {
        let is_word = |c: char| c.is_alphanumeric() || c == '-' || c == '_';
        let kind_len = text.find(|c| !is_word(c)).unwrap_or(text.len());
        let kind = text[..kind_len].to_lowercase();
        let mut rest = text[kind_len..].chars();
        let mut fields = Vec::new();
        if let Some(separator) = rest.next() {
            let mut position = text[..kind_len].chars().count() + 2;
            for word in rest.as_str().split(separator) {
                fields.push(Field { position, value: number(word, position)? });
                position += word.chars().count() + 1;
            }
        }
        let rule = |to_host, to_guest| IdRule { text: text.to_owned(), to_host, to_guest };
        let wrong = |kind, wanted| Err(IdRuleError::Fields { kind, wanted, got: fields.len() });
        match (kind.as_str(), fields.as_slice()) {
            ("guest", &[guest, host, count]) => Ok(rule(shifted(guest, host, count)?, None)),
            ("guest", _) => wrong("guest", 3),
            ("host", &[host, guest, count]) => Ok(rule(None, shifted(host, guest, count)?)),
            ("host", _) => wrong("host", 3),
            ("squash-guest", &[guest, host, count]) => Ok(rule(squashed(guest, host, count)?, None)),
            ("squash-guest", _) => wrong("squash-guest", 3),
            ("squash-host", &[host, guest, count]) => Ok(rule(None, squashed(host, guest, count)?)),
            ("squash-host", _) => wrong("squash-host", 3),
            ("forbid-guest", &[guest, count]) => Ok(rule(span(guest, count, Target::Nothing)?, None)),
            ("forbid-guest", _) => wrong("forbid-guest", 2),
            ("map", &[guest, host, count]) => Ok(rule(shifted(guest, host, count)?, shifted(host, guest, count)?)),
            ("map", _) => wrong("map", 3),
            _ => Err(IdRuleError::Kind(text[..kind_len].to_owned())),
        }
    }
}

fn number(word: &str, position: usize) -> Result<u32, IdRuleError> {
    word.parse().map_err(|_| IdRuleError::Number { position, text: word.to_owned() })
}

/// The map in both directions, which are independent of each other. An id without a rule is unchanged.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IdMap {
    /// Sorted, without overlaps.
    to_host: Vec<IdSpan>,
    /// Sorted, without overlaps.
    to_guest: Vec<IdSpan>,
}

impl IdMap {
    /// The map of `rules`. `IdRuleError::Overlap` where two of them name one id.
    pub fn new(rules: &[IdRule]) -> Result<IdMap, IdRuleError> {
        let to_host = sorted(rules, "guest", |r| r.to_host)?;
        let to_guest = sorted(rules, "host", |r| r.to_guest)?;
        Ok(IdMap { to_host, to_guest })
    }

    fn host(&self, id: u32) -> Result<u32, Errno> {
        translate(&self.to_host, id).ok_or(Errno::EPERM)
    }

    fn guest(&self, id: u32) -> u32 {
        // No id is forbidden in this direction.
        translate(&self.to_guest, id).unwrap_or(id)
    }
}

fn sorted(rules: &[IdRule], side: &'static str, span: impl Fn(&IdRule) -> Option<IdSpan>) -> Result<Vec<IdSpan>, IdRuleError> {
    let mut kept: Vec<(IdSpan, &IdRule)> = Vec::new();
    for rule in rules {
        let Some(new) = span(rule) else { continue };
        if let Some((old, first)) = kept.iter().find(|(old, _)| old.overlaps(&new)) {
            let (first, second) = (first.text.clone(), rule.text.clone());
            return Err(IdRuleError::Overlap { first, second, side, id: old.first.max(new.first) });
        }
        kept.push((new, rule));
    }
    let mut spans: Vec<IdSpan> = kept.into_iter().map(|(span, _)| span).collect();
    spans.sort_by_key(|s| s.first);
    Ok(spans)
}

/// What `id` is mapped to; `None` where it is forbidden.
fn translate(spans: &[IdSpan], id: u32) -> Option<u32> {
    let below = spans.partition_point(|s| s.first <= id);
    match below.checked_sub(1).map(|at| &spans[at]).filter(|s| id <= s.last()) {
        None => Some(id),
        Some(span) => match span.target {
            Target::From(first) => Some(first + (id - span.first)),
            Target::Single(single) => Some(single),
            Target::Nothing => None,
        },
    }
}

/// Maps of user and group ids between guest and host. Without rules ids are unchanged.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Translation {
    /// `--translate-uid`.
    pub users: IdMap,
    /// `--translate-gid`.
    pub groups: IdMap,
}

impl Translation {
    /// The host's user for the guest's. EPERM where the guest may not use it.
    pub fn host_uid(&self, uid: GuestUid) -> Result<HostUid, Errno> {
        self.users.host(uid.0).map(HostUid)
    }

    /// The host's group for the guest's. EPERM where the guest may not use it.
    pub fn host_gid(&self, gid: GuestGid) -> Result<HostGid, Errno> {
        self.groups.host(gid.0).map(HostGid)
    }

    /// The guest's user for the host's.
    pub fn guest_uid(&self, uid: HostUid) -> GuestUid {
        GuestUid(self.users.guest(uid.0))
    }

    /// The guest's group for the host's.
    pub fn guest_gid(&self, gid: HostGid) -> GuestGid {
        GuestGid(self.groups.guest(gid.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn map(rules: &[&str]) -> IdMap {
        let rules: Vec<IdRule> = rules.iter().map(|r| r.parse().unwrap()).collect();
        IdMap::new(&rules).unwrap()
    }

    fn error(rule: &str) -> String {
        rule.parse::<IdRule>().unwrap_err().to_string()
    }

    #[test]
    fn each_kind_of_rule_acts_in_its_own_direction() {
        let cases = [
            ("guest:10:100:5", [(9, 9), (10, 100), (14, 104), (15, 15)], [(100, 100), (104, 104)]),
            ("host:10:100:5", [(10, 10), (14, 14), (100, 100), (0, 0)], [(10, 100), (14, 104)]),
            ("squash-guest:10:7:5", [(9, 9), (10, 7), (14, 7), (15, 15)], [(7, 7), (10, 10)]),
            ("squash-host:10:7:5", [(10, 10), (14, 14), (7, 7), (0, 0)], [(10, 7), (14, 7)]),
            ("map:10:100:5", [(9, 9), (10, 100), (14, 104), (100, 100)], [(100, 10), (104, 14)]),
        ];
        for (rule, to_host, to_guest) in cases {
            let map = map(&[rule]);
            for (guest, host) in to_host {
                assert_eq!(map.host(guest), Ok(host), "{rule}: guest {guest}");
            }
            for (host, guest) in to_guest {
                assert_eq!(map.guest(host), guest, "{rule}: host {host}");
            }
        }
        let map = map(&["forbid-guest:10:5"]);
        assert_eq!((map.host(9), map.host(10), map.host(14), map.host(15)), (Ok(9), Err(Errno::EPERM), Err(Errno::EPERM), Ok(15)));
        assert_eq!(map.guest(12), 12, "the host may");
    }

    #[test]
    fn the_separator_is_any_that_is_no_letter_and_kinds_are_of_any_case() {
        let plain: IdRule = "squash-guest:1:2:3".parse().unwrap();
        for same in ["squash-guest/1/2/3", "Squash-Guest,1,2,3", "SQUASH-GUEST 1 2 3", "squash-guestß"] {
            match same.parse::<IdRule>() {
                Ok(rule) => assert_eq!((rule.to_host, rule.to_guest), (plain.to_host, plain.to_guest), "{same}"),
                Err(e) => assert!(same.ends_with('ß') && e.to_string().contains("unknown kind"), "{e}"),
            }
        }
        assert_eq!(map(&["guest:1:2:0"]), IdMap::default(), "nobody is named");
    }

    #[test]
    fn each_mistake_is_told_with_its_place_and_what_to_write() {
        let cases = [
            ("gast:1:2:3", "position 1: unknown kind of rule \"gast\"; expected guest:"),
            ("", "position 1: unknown kind of rule \"\""),
            ("guest", "\"guest\" takes 3 numbers, not 0; expected guest:GUEST:HOST:COUNT"),
            ("guest:1:2", "\"guest\" takes 3 numbers, not 2"),
            ("forbid-guest:1:2:3", "\"forbid-guest\" takes 2 numbers, not 3"),
            ("map:1:x:3", "position 7: invalid id \"x\"; expected a number from 0"),
            ("map:1::3", "position 7: invalid id \"\""),
            ("map:1/2/3", "position 5: invalid id \"1/2/3\""),
            ("map:1:4294967296:3", "position 7: invalid id \"4294967296\""),
            ("guest:4294967290:0:6", "position 7: 6 ids from 4294967290 on exceed the last id"),
            ("squash-guest:0:4294967295:6", "position 16: 1 ids from 4294967295"),
            ("host:0:4294967290:6", "position 8: 6 ids from 4294967290"),
        ];
        for (rule, message) in cases {
            assert!(error(rule).starts_with(message), "{rule}: {}", error(rule));
        }
        assert!("guest:4294967290:0:5".parse::<IdRule>().is_ok(), "the last id");
        assert!("squash-guest:0:65534:4294967295".parse::<IdRule>().is_ok(), "everybody");
    }

    #[test]
    fn rules_that_name_one_id_twice_are_refused_in_each_direction() {
        let overlap = |rules: &[&str]| {
            let rules: Vec<IdRule> = rules.iter().map(|r| r.parse().unwrap()).collect();
            IdMap::new(&rules).map_err(|e| e.to_string())
        };
        let message = overlap(&["guest:0:100:10", "forbid-guest:5:1"]).unwrap_err();
        assert!(message.starts_with("rules \"guest:0:100:10\" and \"forbid-guest:5:1\" overlap: both map the guest's id 5"), "{message}");
        let message = overlap(&["map:0:100:10", "host:109:0:1"]).unwrap_err();
        assert!(message.contains("the host's id 109"), "{message}");
        assert!(overlap(&["guest:0:100:10", "host:0:100:10", "guest:10:5:10", "squash-guest:20:0:1"]).is_ok());
    }

    fn rules() -> impl Strategy<Value = Vec<IdRule>> {
        let kind = prop::sample::select(vec!["guest", "host", "squash-guest", "squash-host", "map", "forbid-guest"]);
        let rule = (kind, 0u32..60, 0u32..60, 0u32..12).prop_map(|(kind, a, b, count)| match kind {
            "forbid-guest" => format!("{kind}:{a}:{count}"),
            _ => format!("{kind}:{a}:{b}:{count}"),
        });
        prop::collection::vec(rule.prop_map(|r| r.parse().unwrap()), 0..6)
    }

    /// What a rule says of an id, straight from its text.
    fn said(rules: &[IdRule], id: u32, of_guest: bool) -> Vec<Option<u32>> {
        let one = |rule: &IdRule| {
            let words: Vec<&str> = rule.text.split(':').collect();
            let n: Vec<u32> = words[1..].iter().map(|w| w.parse().unwrap()).collect();
            let (from, target, count) = match (words[0], of_guest) {
                ("guest" | "map", true) | ("host", false) => (n[0], n[1] as i64 - n[0] as i64, n[2]),
                ("map", false) => (n[1], n[0] as i64 - n[1] as i64, n[2]),
                ("squash-guest", true) | ("squash-host", false) => return within(id, n[0], n[2]).then_some(Some(n[1])),
                ("forbid-guest", true) => return within(id, n[0], n[1]).then_some(None),
                _ => return None,
            };
            within(id, from, count).then_some(Some((id as i64 + target) as u32))
        };
        rules.iter().filter_map(one).collect()
    }

    fn within(id: u32, first: u32, count: u32) -> bool {
        (first..first + count).contains(&id)
    }

    proptest! {
        #[test]
        fn a_map_does_what_its_rules_say_and_is_refused_exactly_when_two_speak_of_one_id(rules in rules()) {
            let doubled = (0..80).any(|id| said(&rules, id, true).len() > 1 || said(&rules, id, false).len() > 1);
            match IdMap::new(&rules) {
                Err(_) => prop_assert!(doubled),
                Ok(map) => {
                    prop_assert!(!doubled);
                    for id in 0..80 {
                        let host = said(&rules, id, true).first().copied().unwrap_or(Some(id));
                        prop_assert_eq!(map.host(id).ok(), host);
                        let guest = said(&rules, id, false).first().copied().flatten().unwrap_or(id);
                        prop_assert_eq!(map.guest(id), guest);
                    }
                }
            }
        }

        #[test]
        fn what_a_map_rule_names_comes_back_as_it_was(
            guest in 0u32..=u32::MAX / 2,
            host in 0u32..=u32::MAX / 2,
            count in 1u32..u32::MAX / 2,
            at: u32,
        ) {
            let map = map(&[&format!("map:{guest}:{host}:{count}")]);
            let at = at % count;
            prop_assert_eq!(map.host(guest + at), Ok(host + at));
            prop_assert_eq!(map.guest(host + at), guest + at);
            for beyond in [u32::MAX, guest.wrapping_sub(1), guest + count] {
                prop_assert_eq!(map.host(beyond), Ok(beyond));
            }
        }

        #[test]
        fn a_range_is_refused_exactly_when_it_leaves_the_ids(guest: u32, host: u32, count: u32) {
            let fits = guest.checked_add(count).is_some() && host.checked_add(count).is_some();
            prop_assert_eq!(format!("map:{guest}:{host}:{count}").parse::<IdRule>().is_ok(), fits);
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,40}") {
            let _ = text.parse::<IdRule>();
        }
    }
}
