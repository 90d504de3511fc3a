//! `--uid-map` and `--gid-map`: the id maps of the sandbox's user namespace (man user_namespaces(7)).

/// A range of ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdRange {
    /// The first id in the namespace.
    pub inside: u32,
    /// The first id on the host.
    pub outside: u32,
    /// Number of ids.
    pub count: u32,
}

/// The maps of users and groups. An empty one maps the daemon's own id to itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IdMaps {
    /// Users.
    pub uid: Vec<IdRange>,
    /// Groups.
    pub gid: Vec<IdRange>,
}

/// An invalid range: its position, its text, what is wrong, and the format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("range {number} ({text}) {problem}; expected :ID_IN_NAMESPACE:ID_ON_HOST:COUNT:, for example :0:100000:65536:")]
pub struct IdRangeError {
    number: usize,
    text: String,
    problem: String,
}

/// Parses one range from each of `words`. The first character of a word is the separator of its numbers. An error for a word
/// of another format, for a range of no ids or beyond id 4294967294, and for one that overlaps an earlier range.
pub fn parse(words: &[String]) -> Result<Vec<IdRange>, IdRangeError> {
    let mut ranges: Vec<IdRange> = Vec::new();
    for (index, text) in words.iter().enumerate() {
        let failed = |problem| IdRangeError { number: index + 1, text: text.clone(), problem };
        let range = range(text).map_err(failed)?;
        for (earlier, known) in ranges.iter().enumerate() {
            for (place, mine, theirs) in [("in the namespace", range.inside, known.inside), ("on the host", range.outside, known.outside)] {
                if overlap((mine, range.count), (theirs, known.count)) {
                    return Err(failed(format!("overlaps range {} {place}", earlier + 1)));
                }
            }
        }
        ranges.push(range);
    }
    Ok(ranges)
}

fn range(text: &str) -> Result<IdRange, String> {
    let Some(separator) = text.chars().next().filter(|c| !c.is_alphanumeric()) else {
        return Err("does not begin with a separator".to_owned());
    };
    let inner = text[separator.len_utf8()..].strip_suffix(separator);
    let inner = inner.ok_or_else(|| format!("does not end with its separator {separator}"))?;
    let fields: Vec<&str> = inner.split(separator).collect();
    let [inside, outside, count] = fields[..] else {
        return Err(format!("has {} numbers instead of 3", fields.len()));
    };
    let number = |field: &str| field.parse::<u32>().map_err(|_| format!("has \"{field}\" in place of a number from 0 to 4294967295"));
    let range = IdRange { inside: number(inside)?, outside: number(outside)?, count: number(count)? };
    if range.count == 0 {
        return Err("maps no ids".to_owned());
    }
    // The last id, -1, is not an id (man setreuid(2)).
    if [range.inside, range.outside].iter().any(|first| first.checked_add(range.count).is_none()) {
        return Err("goes beyond the last id".to_owned());
    }
    Ok(range)
}

fn overlap(a: (u32, u32), b: (u32, u32)) -> bool {
    // No overflow: `range` checked both sums.
    a.0 < b.0 + b.1 && b.0 < a.0 + a.1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Result<Vec<IdRange>, String> {
        let words: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
        parse(&words).map_err(|e| e.to_string())
    }

    #[test]
    fn the_first_character_separates() {
        let range = IdRange { inside: 0, outside: 100_000, count: 65_536 };
        for word in [":0:100000:65536:", "/0/100000/65536/", " 0 100000 65536 "] {
            assert_eq!(parsed(&[word]), Ok(vec![range]));
        }
        assert_eq!(parsed(&[]), Ok(vec![]));
    }

    #[test]
    fn an_error_names_the_position_of_the_range() {
        let cases: &[(&[&str], &str)] = &[
            (&[""], "range 1 () does not begin with a separator"),
            (&["0:0:1"], "range 1 (0:0:1) does not begin with a separator"),
            (&[":0:0:1:", ":1:1:1"], "range 2 (:1:1:1) does not end with its separator :"),
            (&[":"], "range 1 (:) does not end"),
            (&["::"], "has 1 numbers instead of 3"),
            (&[":0:1:"], "has 2 numbers instead of 3"),
            (&[":0:x:1:"], "has \"x\" in place of a number"),
            (&[":0:-1:1:"], "has \"-1\" in place of a number"),
            (&[":0:0:0:"], "maps no ids"),
            (&[":0:4294967295:1:"], "goes beyond the last id"),
            (&[":0:1000:10:", ":5:5000:1:"], "range 2 (:5:5000:1:) overlaps range 1 in the namespace"),
            (&[":0:1000:10:", ":10:1009:5:"], "range 2 (:10:1009:5:) overlaps range 1 on the host"),
        ];
        for (words, wanted) in cases {
            let said = parsed(words).unwrap_err();
            assert!(said.contains(wanted), "{words:?}: {said}");
            assert!(said.contains(":ID_IN_NAMESPACE:ID_ON_HOST:COUNT:"), "{said}");
        }
        assert_eq!(parsed(&[":0:1000:1:", ":1:100000:65535:"]).map(|r| r.len()), Ok(2), "neighbours do not overlap");
    }
}
