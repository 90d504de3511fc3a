//! `--xattrmap`: rules that rename, hide or refuse extended attributes between guest and host. The syntax is virtiofsd's (its
//! doc/xattr-mapping.md). Does not know files.

use std::borrow::Cow;
use std::ffi::{CStr, CString};
use std::iter::Peekable;
use std::str::{Chars, FromStr};

use crate::types::Errno;

/// Rules that match every remaining name; names without a rule are refused and hidden.
pub const CATCH_ALL: &str = ":ok:all::: or :bad:all:::";
/// The host's kernel removes this attribute when a file is changed, as long as it has this name.
const CAPABILITY: &CStr = c"security.capability";

/// Whose names a rule applies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    Client,
    Server,
    All,
}

impl Scope {
    fn covers(self, side: Scope) -> bool {
        self == side || self == Scope::All
    }
}

/// What is done with a name that a rule matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    /// `prepend` is prepended to the guest's name and stripped from the host's.
    Prefix,
    /// The name is unchanged.
    Ok,
    /// EPERM in the guest, and hidden from it.
    Bad,
    /// EOPNOTSUPP in the guest, and hidden from it.
    Unsupported,
}

/// One rule. An empty `key` matches each name of the guest's, an empty `prepend` each of the host's.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    action: Action,
    scope: Scope,
    /// Prefix of the guest's names.
    key: Vec<u8>,
    /// Prefix of the host's names, and what is prepended.
    prepend: Vec<u8>,
}

impl Rule {
    fn all(action: Action, key: &[u8], prepend: &[u8]) -> Rule {
        Rule { action, scope: Scope::All, key: key.to_vec(), prepend: prepend.to_vec() }
    }

    fn matches_client(&self, name: &[u8]) -> bool {
        self.scope.covers(Scope::Client) && name.starts_with(&self.key)
    }

    fn matches_server(&self, name: &[u8]) -> bool {
        self.scope.covers(Scope::Server) && name.starts_with(&self.prepend)
    }
}

/// Syntax errors. Positions count characters from 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum XattrMapError {
    /// Only white space.
    #[error("no rule; expected at least one, such as :map::user.virtiofs.:")]
    Empty,
    /// Unknown type.
    #[error("position {position}: unknown type \"{text}\"; expected prefix, ok, bad, unsupported or map")]
    Type {
        /// Position of its first character.
        position: usize,
        /// The text there.
        text: String,
    },
    /// Unknown scope.
    #[error("position {position}: unknown scope \"{text}\"; expected client, server or all")]
    Scope {
        /// Position of its first character.
        position: usize,
        /// The text there.
        text: String,
    },
    /// The rules end within a rule.
    #[error("position {position}: the rule that begins here is incomplete; expected {form}, with '{separator}' at the end")]
    Unfinished {
        /// Position of the rule's first character.
        position: usize,
        /// The form of a rule with this separator.
        form: String,
        /// The rule's separator.
        separator: char,
    },
    /// A map rule with rules after it.
    #[error("position {position}: a rule follows the map rule, which matches every name; put the map rule last")]
    AfterMap {
        /// Position of the first character of the rule after it.
        position: usize,
    },
}

/// The rules, in the order in which they are tried: the first that matches decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct XattrMap {
    rules: Vec<Rule>,
    /// Name of `security.capability` on the host, where it has another name there.
    capability: Option<CString>,
}

impl XattrMap {
    /// The host's name for the guest's. EPERM where a rule refuses it or none matches; EOPNOTSUPP where a
    /// rule says unsupported.
    pub fn to_host<'n>(&self, name: &'n CStr) -> Result<Cow<'n, CStr>, Errno> {
        let rule = self.rules.iter().find(|r| r.matches_client(name.to_bytes())).ok_or(Errno::EPERM)?;
        match rule.action {
            Action::Ok => Ok(Cow::Borrowed(name)),
            Action::Bad => Err(Errno::EPERM),
            Action::Unsupported => Err(Errno::EOPNOTSUPP),
            Action::Prefix => {
                let whole = [&rule.prepend[..], name.to_bytes()].concat();
                Ok(Cow::Owned(CString::new(whole).map_err(|_| Errno::EINVAL)?))
            }
        }
    }

    /// The guest's name for the host's; `None` where it is hidden. Names are without their NUL.
    pub fn to_guest<'n>(&self, name: &'n [u8]) -> Option<&'n [u8]> {
        let rule = self.rules.iter().find(|r| r.matches_server(name))?;
        match rule.action {
            Action::Ok => Some(name),
            Action::Bad | Action::Unsupported => None,
            Action::Prefix => Some(&name[rule.prepend.len()..]).filter(|rest| !rest.is_empty()),
        }
    }

    /// Name of `security.capability` on the host, where it has another name there, so that the host's kernel does not remove it from
    /// a file that is changed.
    pub fn hidden_capability(&self) -> Option<&CStr> {
        self.capability.as_deref()
    }

    /// Whether some rule matches every name, in both directions.
    pub fn is_complete(&self) -> bool {
        let client = self.rules.iter().any(|r| r.scope.covers(Scope::Client) && r.key.is_empty());
        client && self.rules.iter().any(|r| r.scope.covers(Scope::Server) && r.prepend.is_empty())
    }
}

impl FromStr for XattrMap {
    type Err = XattrMapError;

    /// Rules with or without white space between them. Each begins with the character that separates its
    /// fields: `:TYPE:SCOPE:KEY:PREPEND:` or, as the last one, `:map:KEY:PREPEND:`.
    fn from_str(text: &str) -> Result<XattrMap, XattrMapError> {
        let mut reader = Reader { chars: text.chars().peekable(), position: 1 };
        let mut rules = Vec::new();
        let mut has_map = false;
        while let Some(separator) = reader.next_separator() {
            let position = reader.position - 1;
            if has_map {
                return Err(XattrMapError::AfterMap { position });
            }
            let (type_at, kind) = reader.field(separator, position)?;
            let action = match kind.as_str() {
                "prefix" => Action::Prefix,
                "ok" => Action::Ok,
                "bad" => Action::Bad,
                "unsupported" => Action::Unsupported,
                "map" => {
                    let (_, key) = reader.field(separator, position)?;
                    let (_, prepend) = reader.field(separator, position)?;
                    push_map(&mut rules, key.as_bytes(), prepend.as_bytes());
                    has_map = true;
                    continue;
                }
                _ => return Err(XattrMapError::Type { position: type_at, text: kind }),
            };
            let (scope_at, scope) = reader.field(separator, position)?;
            let scope = match scope.as_str() {
                "client" => Scope::Client,
                "server" => Scope::Server,
                "all" => Scope::All,
                _ => return Err(XattrMapError::Scope { position: scope_at, text: scope }),
            };
            let (_, key) = reader.field(separator, position)?;
            let (_, prepend) = reader.field(separator, position)?;
            rules.push(Rule { action, scope, key: key.into_bytes(), prepend: prepend.into_bytes() });
        }
        if rules.is_empty() {
            return Err(XattrMapError::Empty);
        }
        let mut map = XattrMap { rules, capability: None };
        map.capability = map.to_host(CAPABILITY).ok().filter(|name| name.as_ref() != CAPABILITY).map(Cow::into_owned);
        Ok(map)
    }
}

/// Expands `:map:KEY:PREPEND:`: names that begin with `key` get the prefix, names of the guest with that prefix are refused, and
/// other names are unchanged, unless the key is empty and there are no others.
fn push_map(rules: &mut Vec<Rule>, key: &[u8], prepend: &[u8]) {
    rules.push(Rule::all(Action::Prefix, key, prepend));
    if key.is_empty() {
        rules.push(Rule::all(Action::Bad, b"", b""));
    } else {
        rules.push(Rule::all(Action::Bad, prepend, key));
        rules.push(Rule::all(Action::Ok, b"", b""));
    }
}

/// The rest of the text of the rules.
struct Reader<'t> {
    chars: Peekable<Chars<'t>>,
    /// Position of the next character.
    position: usize,
}

impl Reader<'_> {
    fn next(&mut self) -> Option<char> {
        self.position += 1;
        self.chars.next()
    }

    /// The first character of the next rule.
    fn next_separator(&mut self) -> Option<char> {
        while self.chars.peek()?.is_whitespace() {
            self.next();
        }
        self.next()
    }

    /// The text before the next `separator`, and its position. The rule began at `rule`.
    fn field(&mut self, separator: char, rule: usize) -> Result<(usize, String), XattrMapError> {
        let begin = self.position;
        let mut text = String::new();
        loop {
            match self.next() {
                Some(c) if c == separator => return Ok((begin, text)),
                Some(c) => text.push(c),
                None => {
                    let s = separator;
                    let form = format!("{s}TYPE{s}SCOPE{s}KEY{s}PREPEND{s} or {s}map{s}KEY{s}PREPEND{s}");
                    return Err(XattrMapError::Unfinished { position: rule, form, separator });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn map(rules: &str) -> XattrMap {
        rules.parse().unwrap()
    }

    fn client(rules: &str, name: &str) -> Result<String, Errno> {
        let name = CString::new(name).unwrap();
        map(rules).to_host(&name).map(|n| n.to_str().unwrap().to_owned())
    }

    fn server(rules: &str, names: &[&str]) -> Vec<String> {
        let map = map(rules);
        names.iter().filter_map(|n| map.to_guest(n.as_bytes())).map(|n| String::from_utf8(n.to_vec()).unwrap()).collect()
    }

    fn error(rules: &str) -> XattrMapError {
        rules.parse::<XattrMap>().unwrap_err()
    }

    #[test]
    fn rules_are_read_one_or_several_with_white_space_or_without() {
        let one = map(":prefix:client:trusted.:user.virtiofs.:");
        assert_eq!(
            one.rules,
            [Rule { action: Action::Prefix, scope: Scope::Client, key: b"trusted.".to_vec(), prepend: b"user.virtiofs.".to_vec() }]
        );
        let two = [Rule::all(Action::Prefix, b"", b"user.virtiofs."), Rule::all(Action::Bad, b"", b"")];
        assert_eq!(map(":prefix:all::user.virtiofs.::bad:all:::").rules, two);
        assert_eq!(map("  :prefix:all::user.virtiofs.:\n\t:bad:all::: ").rules, two);
        let four = map("/prefix/all/trusted./user.virtiofs./\n /bad/server//trusted./ /bad/client/user.virtiofs.// /ok/all///");
        assert_eq!(four.rules.len(), 4);
        assert_eq!(four.rules[1], Rule { action: Action::Bad, scope: Scope::Server, key: Vec::new(), prepend: b"trusted.".to_vec() });
        assert_eq!(four.rules[2], Rule { action: Action::Bad, scope: Scope::Client, key: b"user.virtiofs.".to_vec(), prepend: Vec::new() });
    }

    #[test]
    fn each_rule_has_a_separator_of_its_own_also_one_of_several_bytes() {
        let same = map(":prefix:all:trusted.:user.virtiofs.: /prefix/all/trusted./user.virtiofs./ §prefix§all§trusted.§user.virtiofs.§");
        assert!(same.rules.windows(2).all(|pair| pair[0] == pair[1]) && same.rules.len() == 3);
        assert_eq!(client("-ok-all---", "user.ä"), Ok("user.ä".to_owned()));
        assert_eq!(server(":prefix:all::user.ä.:", &["user.ä.x"]), ["x"]);
    }

    #[test]
    fn map_is_short_for_rules_that_keep_the_prefix_out_of_reach() {
        let everything = [Rule::all(Action::Prefix, b"", b"user.virtiofs."), Rule::all(Action::Bad, b"", b"")];
        assert_eq!(map(":map::user.virtiofs.:").rules, everything);
        let some = [
            Rule::all(Action::Prefix, b"trusted.", b"user.virtiofs."),
            Rule::all(Action::Bad, b"user.virtiofs.", b"trusted."),
            Rule::all(Action::Ok, b"", b""),
        ];
        assert_eq!(map(":map:trusted.:user.virtiofs.:").rules, some);
        let rules = ":map:trusted.:user.virtiofs.:";
        assert_eq!(client(rules, "trusted.overlay.opaque"), Ok("user.virtiofs.trusted.overlay.opaque".to_owned()));
        assert_eq!(client(rules, "user.virtiofs.trusted.overlay.opaque"), Err(Errno::EPERM));
        assert_eq!(client(rules, "user.other"), Ok("user.other".to_owned()));
        let names = ["user.virtiofs.trusted.a", "trusted.hidden", "user.other"];
        assert_eq!(server(rules, &names), ["trusted.a", "user.other"]);
    }

    #[test]
    fn ok_passes_and_stops_the_search() {
        assert_eq!(client(":ok:all:::", "user.virtiofs.potato"), Ok("user.virtiofs.potato".to_owned()));
        let rules = ":ok:all:allow.:allow.::bad:all:::";
        assert_eq!(client(rules, "allow.y"), Ok("allow.y".to_owned()));
        assert_eq!(client(rules, "other"), Err(Errno::EPERM));
        assert_eq!(server(rules, &["allow.y", "other"]), ["allow.y"]);
    }

    #[test]
    fn bad_and_unsupported_refuse_the_guest_and_hide_from_it() {
        for (kind, errno) in [("bad", Errno::EPERM), ("unsupported", Errno::EOPNOTSUPP)] {
            assert_eq!(client(&format!(":{kind}:client:::"), "virtiofs."), Err(errno));
            let hiding = format!(":{kind}:server::security.: :ok:all:::");
            assert_eq!(server(&hiding, &["security.secret", "boring_attr"]), ["boring_attr"]);
            assert_eq!(client(&hiding, "security.secret"), Ok("security.secret".to_owned()), "a server's rule is not for the client");
        }
    }

    #[test]
    fn prefix_goes_before_the_guests_names_and_from_the_hosts() {
        assert_eq!(
            client(":prefix:all:trusted.:virtiofs.user.:", "trusted.secret_thing"),
            Ok("virtiofs.user.trusted.secret_thing".to_owned())
        );
        assert_eq!(server(":prefix:server::virtiofs.user.:", &["virtiofs.user.x", "virtiofs.user."]), ["x"], "no name is empty");
    }

    #[test]
    fn names_that_no_rule_speaks_of_are_refused_and_hidden() {
        let rules = ":ok:client:user.:: :ok:server::user.:";
        assert_eq!((client(rules, "user.a"), client(rules, "trusted.a")), (Ok("user.a".to_owned()), Err(Errno::EPERM)));
        assert_eq!(server(rules, &["user.a", "trusted.a"]), ["user.a"]);
        assert!(!map(rules).is_complete() && !map(":prefix:client::user.:").is_complete());
        assert!(map(":ok:client:user.:: :ok:server::user.: :bad:all:::").is_complete() && map(":map::user.:").is_complete());
        assert!(map(":ok:client::: :bad:server:::").is_complete());
    }

    #[test]
    fn a_renamed_capability_is_known() {
        let name = |rules| map(rules).hidden_capability().map(CStr::to_owned);
        assert_eq!(name(":map::user.virtiofs.:"), Some(c"user.virtiofs.security.capability".to_owned()));
        assert_eq!((name(":ok:all:::"), name(":bad:all:::"), name(":map:trusted.:user.:")), (None, None, None));
    }

    #[test]
    fn each_mistake_is_told_with_its_place_and_what_to_write() {
        assert_eq!(error(" "), XattrMapError::Empty);
        let cases = [
            (":TOMATO:all:a:b:", "position 2: unknown type \"TOMATO\"; expected prefix"),
            ("  /prefix/helloworld///", "position 11: unknown scope \"helloworld\"; expected client"),
            (":prefix:client:hi", "position 1: the rule that begins here is incomplete; expected :TYPE:SCOPE:KEY:PREPEND: or"),
            (":ok:all::: /bad/all/a/b", "position 12: the rule that begins here is incomplete; expected /TYPE/"),
            ("x", "position 1: the rule that begins here"),
            (":map:trusted.:virtiofs.user.::map:trusted.:virtiofs.user.:", "position 30: a rule follows the map rule"),
            (":map:a:b: :ok:all:::", "position 11: a rule follows the map rule"),
        ];
        for (rules, message) in cases {
            assert!(error(rules).to_string().starts_with(message), "{rules}: {}", error(rules));
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_or_the_map_panic(text in "[:/ pbomk a-z.]{0,60}", name in "[a-z.]{1,20}") {
            if let Ok(map) = text.parse::<XattrMap>() {
                let _ = map.to_host(&CString::new(name.clone()).unwrap());
                prop_assert!(map.to_guest(name.as_bytes()).is_none_or(|n| name.as_bytes().ends_with(n) && !n.is_empty()));
            }
        }

        #[test]
        fn what_a_map_rule_lets_the_guest_write_it_sees_by_the_same_name(
            key in "(|user\\.|trusted\\.|security\\.)",
            prepend in "(user\\.v\\.|trusted\\.v\\.)",
            name in "(user|trusted|security)\\.[a-z.]{1,8}",
        ) {
            let map = map(&format!(":map:{key}:{prepend}:"));
            if let Ok(on_host) = map.to_host(&CString::new(name.clone()).unwrap()) {
                prop_assert_eq!(map.to_guest(on_host.to_bytes()), Some(name.as_bytes()));
            }
        }
    }
}
