//! A `dummy_hcd` that carries what a cable carries: Debian's source, one millisecond's bytes spread over its eight ticks.
//!
//! The source is fetched, changed, built and thrown away; only the module stays, beside the kernel it is for.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use xshell::{Shell, cmd};

use super::apt::Apt;
use super::{kernel::Kernel, packages};
use crate::project;

const IN_SOURCE: &str = "drivers/usb/gadget/udc/dummy_hcd.c";

/// Bytes a tick of 125 µs: 53,248 become 6,656 at high speed, 490,000 become 57,500 at SuperSpeed.
const BUDGETS: [(&str, &str); 2] = [(" * 8/*uframes*/;", ";"), ("total = 490000;", "total = 57500;")];

/// Builds the module if it is not there.
pub(crate) fn ensure(kernel: &Kernel) -> Result<PathBuf> {
    let module = kernel.tree.join("faithful/dummy_hcd.ko");
    if module.exists() {
        return Ok(module);
    }
    let release = &kernel.release;
    eprintln!("building dummy_hcd with a cable's bandwidth for {release} (170 MB to download)");
    let work = tempfile::Builder::new().prefix("link-").tempdir_in(project::board_dir()?)?;
    let tree = work.path().join("tree");
    let apt = Apt::open(None)?;
    let common = release.trim_end_matches("-amd64");
    let headers = format!("linux-headers-{release}");
    let version = apt.version(&headers).with_context(|| {
        format!(
            "Debian no longer has {headers}; remove {} for a newer kernel and try again",
            kernel.tree.display()
        )
    })?;
    let series = release.splitn(3, '.').take(2).collect::<Vec<_>>().join(".");
    let packages = [
        headers.clone(),
        format!("linux-headers-{common}-common"),
        format!("linux-kbuild-{common}"),
        format!("linux-source-{series}={version}"),
    ];
    apt.unpack(&packages, &tree)?;
    let built = build(&tree, &headers, &series)?;
    if let Some(dir) = module.parent() {
        fs::create_dir_all(dir)?;
    }
    fs::rename(&built, &module).with_context(|| format!("cannot move {}", built.display()))?;
    Ok(module)
}

fn build(tree: &Path, headers: &str, series: &str) -> Result<PathBuf> {
    let shell = Shell::new()?;
    let sources = tree.join("usr/src");
    let headers = sources.join(headers);
    // Debian's makefile names its other half by the path where it would be installed.
    edit(&headers.join("Makefile"), &[("/usr/src", &sources.display().to_string())])?;
    let variables = fs::read_to_string(headers.join(".kernelvariables"))?;
    let compiler = variables
        .split(|c: char| c.is_whitespace() || c == ')')
        .find(|word| word.starts_with("gcc-"))
        .context("Debian's kernel headers do not say which compiler they want")?;
    packages::ensure_builders(compiler)?;
    let module = tree.join("module");
    let (archive, member) =
        (sources.join(format!("linux-source-{series}.tar.xz")), format!("linux-source-{series}/{IN_SOURCE}"));
    fs::create_dir(&module)?;
    cmd!(shell, "tar --extract --xz --file {archive} --directory {module} --strip-components=5 --occurrence=1 {member}")
        .quiet()
        .run()?;
    edit(&module.join("dummy_hcd.c"), &BUDGETS)?;
    fs::write(module.join("Makefile"), "obj-m := dummy_hcd.o\n")?;
    // Type information would want pahole, and nothing on the board reads it.
    cmd!(shell, "make --silent -C {headers} M={module} CONFIG_DEBUG_INFO_BTF_MODULES= modules")
        .quiet()
        .run()
        .context("dummy_hcd does not build")?;
    Ok(module.join("dummy_hcd.ko"))
}

/// Replaces each text, which must be there exactly once.
fn edit(file: &Path, changes: &[(&str, &str)]) -> Result<()> {
    let mut text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    for (old, new) in changes {
        let found = text.matches(old).count();
        ensure!(found == 1, "{} has `{old}` {found} times; this kernel's differs", file.display());
        text = text.replace(old, new);
    }
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}
