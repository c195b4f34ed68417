//! House rules that no lint knows: lengths, where `unsafe` may stand, and no leftovers.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::source::{self, Word};

const FILE_LINES: usize = 600;
const FUNCTION_LINES: usize = 70;
/// Two rooms, and the test that submits to io_uring past them because it shows why they do not.
const UNSAFE_ROOMS: [&str; 3] = ["src/ring", "src/gadget", "hw-tests/tests/why_aio"];
const LEFTOVERS: [&str; 3] = ["TODO", "FIXME", "XXX"];

/// Every broken rule below `root`, as `file:line: what`.
pub(crate) fn check(root: &Path) -> Result<Vec<String>> {
    let mut files = Vec::new();
    collect(root, &mut files)?;
    files.sort();
    let mut faults = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let name = file.strip_prefix(root).unwrap_or(&file);
        faults.extend(
            check_text(name, &text)
                .into_iter()
                .map(|(line, what)| format!("{}:{line}: {what}", name.display())),
        );
    }
    Ok(faults)
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let entry = entry?;
        let (path, name) = (entry.path(), entry.file_name());
        let skipped = name == "target"
            || name.as_encoded_bytes().starts_with(b".")
            || path.join("CACHEDIR.TAG").exists();
        if entry.file_type()?.is_dir() && !skipped {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

fn check_text(name: &Path, text: &str) -> Vec<(usize, String)> {
    let mut faults = Vec::new();
    let length = text.lines().count();
    if length >= FILE_LINES {
        faults.push((length, format!("{length} lines; split the file, the limit is {FILE_LINES}")));
    }
    let source = source::strip(text);
    let words = source::words(&source.code);
    let unsafe_allowed = UNSAFE_ROOMS.iter().any(|room| name.with_extension("").starts_with(room));
    for Word { line, text } in &words {
        match *text {
            "unsafe" if !unsafe_allowed => {
                faults.push((*line, format!("unsafe outside {}", UNSAFE_ROOMS.join(" and "))));
            }
            _ => {}
        }
    }
    for (number, line) in source.code.lines().enumerate() {
        if line.replace(' ', "").contains("#[ignore") {
            faults.push((number + 1, "an ignored test; make it run or delete it".to_owned()));
        }
    }
    for Word { line, text } in words.iter().chain(&source::words(&source.comments)) {
        if LEFTOVERS.contains(text) {
            faults.push((*line, format!("{text} in the source; do it or make it an issue")));
        }
    }
    for function in source::functions(&words) {
        if function.lines > FUNCTION_LINES {
            let source::Function { name, line, lines } = function;
            faults.push((line, format!("fn {name} has {lines} lines, the limit is {FUNCTION_LINES}")));
        }
    }
    faults.sort();
    faults
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::check_text;

    fn faults(name: &str, text: &str) -> Vec<usize> {
        check_text(Path::new(name), text).into_iter().map(|(line, _)| line).collect()
    }

    #[test]
    fn unsafe_belongs_to_two_rooms() {
        let text = "#![allow(unsafe_code)]\n// unsafe is said here\nlet a = \"unsafe\"; unsafe { f() }\n";
        assert_eq!(faults("src/bot/mod.rs", text), [3]);
        assert_eq!(faults("src/ringlet.rs", text), [3]);
        assert!(faults("src/ring/pool.rs", text).is_empty());
        assert!(faults("src/gadget.rs", text).is_empty());
    }

    #[test]
    fn leftovers_are_found_in_comments_and_not_in_strings() {
        let mark = ["TO", "DO"].concat();
        assert_eq!(faults("a.rs", &format!("fn a() {{}}\n// {mark}: later\n")), [2]);
        assert_eq!(faults("a.rs", &format!("/* x\n {mark} */\n")), [2]);
        assert!(faults("a.rs", &format!("const A: &str = \"{mark}\";\n")).is_empty());
    }

    #[test]
    fn an_ignored_test_is_found() {
        assert_eq!(faults("a.rs", "#[test]\n#[ignore = \"slow\"]\nfn a() {}\n"), [2]);
    }

    #[test]
    fn long_functions_and_files_are_found_where_they_start() {
        let body = "    let _ = '{';\n".repeat(69);
        assert_eq!(faults("a.rs", &format!("\nfn long() {{\n{body}}}\n")), [2]);
        let body = "    let _ = \"}\";\n".repeat(68);
        assert!(faults("a.rs", &format!("fn fits() {{\n{body}}}\n")).is_empty());
        assert_eq!(faults("a.rs", &"\n".repeat(600)), [600]);
    }
}
