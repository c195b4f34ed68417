//! Quoting for the POSIX shell, for any bytes an argument may hold.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// `word` as one word of a shell command, byte for byte.
pub(crate) fn shell_word(word: &OsStr) -> Vec<u8> {
    let mut quoted = vec![b'\''];
    for &byte in word.as_bytes() {
        match byte {
            b'\'' => quoted.extend_from_slice(br"'\''"),
            other => quoted.push(other),
        }
    }
    quoted.push(b'\'');
    quoted
}

/// The words of a command, quoted and joined by spaces.
pub(crate) fn shell_words<I>(words: I) -> Vec<u8>
where
    I: IntoIterator,
    I::Item: AsRef<OsStr>,
{
    words.into_iter().map(|word| shell_word(word.as_ref())).collect::<Vec<_>>().join(&b' ')
}

#[cfg(test)]
mod tests {
    use std::ffi::{OsStr, OsString};
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    use std::process::Command;

    use super::shell_words;

    #[test]
    fn the_shell_reads_back_every_byte() {
        let all: Vec<u8> = (1..=255).collect();
        let words = [&b""[..], b"two words", b"it's", b"\"$HOME\" `id` \\ \n*", "pr\u{fc}f".as_bytes(), &all];
        for word in words {
            let mut script = b"printf %s ".to_vec();
            script.extend(shell_words([OsStr::from_bytes(word)]));
            let output = Command::new("sh").arg("-c").arg(OsString::from_vec(script)).output().unwrap();
            assert_eq!(output.stdout, word);
        }
    }
}
