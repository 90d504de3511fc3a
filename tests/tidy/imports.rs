//! Which file of the sources imports which: by the text of their paths, resolved to the file that defines the item.

use std::collections::{BTreeMap, BTreeSet};

/// A file of the sources: its path below src/, and its text without tests.
pub struct File<'s> {
    pub path: &'s str,
    pub text: &'s str,
}

type ModulePath = Vec<String>;

/// The modules of the crate, each with its file and what it re-exports.
pub struct Modules<'s> {
    files: BTreeMap<ModulePath, &'s File<'s>>,
    /// Items that a module re-exports: name to the path behind it.
    exports: BTreeMap<ModulePath, BTreeMap<String, ModulePath>>,
}

/// The module that `path` is the file of.
fn module_of(path: &str) -> ModulePath {
    let path = path.trim_end_matches(".rs").trim_end_matches("/mod");
    if path == "lib" { Vec::new() } else { path.split('/').map(str::to_owned).collect() }
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Whether code, not a comment, stands at byte `at` of `text`.
fn is_code(text: &str, at: usize) -> bool {
    let line_begins = text[..at].rfind('\n').map_or(0, |at| at + 1);
    !text[line_begins..at].contains("//")
}

/// Splits what is between braces at the commas of its own level.
fn branches(text: &str) -> Vec<&str> {
    let (mut depth, mut begin, mut found) = (0, 0, Vec::new());
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                found.push(&text[begin..at]);
                begin = at + 1;
            }
            _ => {}
        }
    }
    found.push(&text[begin..]);
    found.into_iter().map(str::trim).filter(|branch| !branch.is_empty()).collect()
}

/// The paths of a use tree, each with the name that it gets.
fn use_paths(tree: &str, prefix: &[String], found: &mut Vec<(ModulePath, String)>) {
    let tree = tree.trim();
    if let Some((before, inside)) = tree.split_once('{') {
        let mut prefix = prefix.to_vec();
        prefix.extend(before.split("::").map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned));
        for branch in branches(inside.trim_end().trim_end_matches('}')) {
            use_paths(branch, &prefix, found);
        }
        return;
    }
    let (path, name) = tree.split_once(" as ").map_or((tree, None), |(path, name)| (path, Some(name.trim())));
    let mut parts = prefix.to_vec();
    parts.extend(path.split("::").map(|part| part.trim().to_owned()));
    if parts.last().is_some_and(|last| last == "self") {
        parts.pop();
    }
    let name = name.map_or_else(|| parts.last().cloned().unwrap_or_default(), str::to_owned);
    found.push((parts, name));
}

/// The use trees of a text, each with whether it is a re-export.
fn use_trees(text: &str) -> Vec<(bool, &str)> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices("use ") {
        let line_begins = text[..at].rfind('\n').map_or(0, |at| at + 1);
        let before = text[line_begins..at].trim();
        if before.is_empty() || before.starts_with("pub") && !before.contains("//") {
            let end = text[at..].find(';').map_or(text.len(), |len| at + len);
            found.push((before.starts_with("pub"), &text[at + 4..end]));
        }
    }
    found
}

impl<'s> Modules<'s> {
    pub fn new(files: &'s [File<'s>]) -> Modules<'s> {
        let mut modules = Modules { files: BTreeMap::new(), exports: BTreeMap::new() };
        modules.files.extend(files.iter().map(|file| (module_of(file.path), file)));
        for file in files {
            let module = module_of(file.path);
            let mut exports = BTreeMap::new();
            for (_, tree) in use_trees(file.text).into_iter().filter(|(is_export, _)| *is_export) {
                let mut paths = Vec::new();
                use_paths(tree, &[], &mut paths);
                exports.extend(paths.into_iter().map(|(path, name)| (name, modules.absolute(&module, &path))));
            }
            modules.exports.insert(module, exports);
        }
        modules
    }

    /// `path` as written in `module`, from the crate's root.
    fn absolute(&self, module: &[String], path: &[String]) -> ModulePath {
        let mut at = module.to_vec();
        let mut rest = path;
        match path.first().map(String::as_str) {
            Some("crate") => {
                at.clear();
                rest = &path[1..];
            }
            Some("self") => rest = &path[1..],
            Some("super") => {
                while rest.first().is_some_and(|part| part == "super") {
                    at.pop();
                    rest = &rest[1..];
                }
            }
            _ => {}
        }
        at.extend_from_slice(rest);
        at
    }

    /// The file that defines what `path`, from the crate's root, names.
    fn defining(&self, path: &[String]) -> Option<&'s str> {
        let mut path = path.to_vec();
        // A re-export of a re-export of ...
        for _ in 0..8 {
            let depth = (0..=path.len()).rev().find(|depth| self.files.contains_key(&path[..*depth]))?;
            let (module, rest) = path.split_at(depth);
            let behind = rest.first().and_then(|name| self.exports.get(module)?.get(name));
            match behind {
                Some(behind) if behind[..] != path[..] => path = [&behind[..], &rest[1..]].concat(),
                _ => return self.files.get(module).map(|file| file.path),
            }
        }
        None
    }

    /// The files of the crate that `file` imports from, apart from those whose items it only re-exports.
    pub fn imports(&self, file: &File<'_>) -> BTreeSet<&'s str> {
        let module = module_of(file.path);
        let mut paths = Vec::new();
        for (_, tree) in use_trees(file.text).into_iter().filter(|(is_export, _)| !is_export) {
            use_paths(tree, &[], &mut paths);
        }
        let mut found: Vec<ModulePath> = paths.into_iter().map(|(path, _)| path).collect();
        for root in ["crate::", "super::"] {
            for (at, _) in file.text.match_indices(root) {
                let begins = !file.text[..at].ends_with(is_name) && !file.text[..at].ends_with("::");
                if begins && is_code(file.text, at) {
                    let text: String = file.text[at..].chars().take_while(|c| is_name(*c) || *c == ':').collect();
                    found.push(text.split("::").filter(|part| !part.is_empty()).map(str::to_owned).collect());
                }
            }
        }
        let starts_here = |path: &ModulePath| path.first().is_some_and(|first| ["crate", "super", "self"].contains(&first.as_str()));
        let defined = found.iter().filter(|path| starts_here(path)).filter_map(|path| self.defining(&self.absolute(&module, path)));
        defined.filter(|path| *path != file.path).collect()
    }
}

/// A cycle in `edges`, if there is one: each imports the next, the last one the first.
pub fn cycle<'s>(edges: &BTreeMap<&'s str, BTreeSet<&'s str>>) -> Option<Vec<&'s str>> {
    fn visit<'s>(
        at: &'s str,
        edges: &BTreeMap<&'s str, BTreeSet<&'s str>>,
        path: &mut Vec<&'s str>,
        done: &mut BTreeSet<&'s str>,
    ) -> Option<Vec<&'s str>> {
        if let Some(first) = path.iter().position(|file| *file == at) {
            return Some(path[first..].to_vec());
        }
        if !done.insert(at) {
            return None;
        }
        path.push(at);
        let found = edges.get(at).into_iter().flatten().find_map(|next| visit(next, edges, path, done));
        path.pop();
        found
    }
    let mut done = BTreeSet::new();
    edges.keys().find_map(|file| visit(file, edges, &mut Vec::new(), &mut done))
}

/// Files of `edges` from which a way of imports leads back to them.
pub fn in_circles(edges: &BTreeMap<&str, BTreeSet<&str>>) -> usize {
    let leads_back = |file: &&&str| {
        let (mut seen, mut next) = (BTreeSet::new(), Vec::from_iter(&edges[**file]));
        while let Some(at) = next.pop() {
            if seen.insert(at) {
                next.extend(edges.get(at).into_iter().flatten());
            }
        }
        seen.contains(*file)
    };
    edges.keys().filter(leads_back).count()
}
