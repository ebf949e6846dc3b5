//! A unified diff of small texts.

use std::fmt::Write as _;

/// Configuration files are short; beyond this many lines everything counts as changed.
const LINES_MAX: usize = 2000;
/// Unchanged lines around a change.
const CONTEXT: usize = 3;

/// The changes from one text to another; empty when there are none.
pub(super) fn unified(before: &str, after: &str) -> String {
    let (old, new): (Vec<&str>, Vec<&str>) = (before.lines().collect(), after.lines().collect());
    let lines = align(&old, &new);
    let mut text = String::new();
    let mut i = 0;
    while let Some(change) = lines[i..].iter().position(|(mark, _)| *mark != ' ') {
        let start = (i + change).saturating_sub(CONTEXT).max(i);
        let mut end = i + change;
        // A hunk goes on while the next change is near.
        while let Some(next) = lines[end..].iter().take(2 * CONTEXT + 1).position(|(mark, _)| *mark != ' ') {
            end += next + 1;
        }
        let end = (end + CONTEXT).min(lines.len());
        let count = |lines: &[(char, &str)], without: char| lines.iter().filter(|(mark, _)| *mark != without).count();
        let _ = writeln!(
            text,
            "@@ -{},{} +{},{} @@",
            count(&lines[..start], '+') + 1,
            count(&lines[start..end], '+'),
            count(&lines[..start], '-') + 1,
            count(&lines[start..end], '-'),
        );
        for (mark, line) in &lines[start..end] {
            let _ = writeln!(text, "{mark}{line}");
        }
        i = end;
    }
    text
}

/// Longest common subsequence.
fn align<'a>(old: &[&'a str], new: &[&'a str]) -> Vec<(char, &'a str)> {
    if old.len() > LINES_MAX || new.len() > LINES_MAX {
        return old.iter().map(|line| ('-', *line)).chain(new.iter().map(|line| ('+', *line))).collect();
    }
    let mut common = vec![vec![0u32; new.len() + 1]; old.len() + 1];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            common[i][j] =
                if old[i] == new[j] { common[i + 1][j + 1] + 1 } else { common[i + 1][j].max(common[i][j + 1]) };
        }
    }
    let (mut i, mut j, mut lines) = (0, 0, Vec::new());
    while i < old.len() || j < new.len() {
        if i < old.len() && j < new.len() && old[i] == new[j] {
            lines.push((' ', old[i]));
            i += 1;
            j += 1;
        } else if j == new.len() || (i < old.len() && common[i + 1][j] >= common[i][j + 1]) {
            lines.push(('-', old[i]));
            i += 1;
        } else {
            lines.push(('+', new[j]));
            j += 1;
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hunks() {
        assert_eq!(unified("a\nb\n", "a\nb\n"), "");
        assert_eq!(unified("", "a\n"), "@@ -1,0 +1,1 @@\n+a\n");
        assert_eq!(unified("a\nb\nc\n", "a\nx\nc\n"), "@@ -1,3 +1,3 @@\n a\n-b\n+x\n c\n");
        let long: String = (0..30).map(|i| format!("{i}\n")).collect();
        let changed = long.replace("\n2\n", "\ntwo\n").replace("\n25\n", "\n");
        let diff = unified(&long, &changed);
        assert_eq!(diff.matches("@@ -").count(), 2);
        assert!(diff.contains("@@ -1,6 +1,6 @@") && diff.contains("@@ -23,7 +23,6 @@"), "{diff}");
    }
}
