//! Images of the past: six small ones with a tag each, pushed with the real binary, so that there is something to prune.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use crate::processes::Interrupt;
use crate::trouble::{At, Trouble};

/// How many there are.
pub(crate) const COUNT: usize = 6;

/// Pushes them to `image` (host:port/namespace/name) as `user`.
pub(crate) fn push(
    sower: &Path,
    image: &str,
    (user, password): (&str, &str),
    place: &Path,
    log: &Path,
    interrupt: &Interrupt,
) -> Result<(), Trouble> {
    for number in 1..=COUNT {
        let archive = place.join(format!("old-{number}"));
        layout(&archive, number, log, interrupt)?;
        let mut command = Command::new(sower);
        command.args(["image", "push", "--plain-http", "--tag", &format!("0ld000{number}")]);
        command.arg(&archive).arg(image);
        command.env("SOWER_REGISTRY_USERNAME", user).env("SOWER_REGISTRY_PASSWORD", password);
        command.env("SOWER_CACHE_DIR", place.join("cache"));
        interrupt.run(&mut command, log)?;
    }
    Ok(())
}

/// A docker-archive whose one layer holds a file with a number in it.
fn layout(archive: &Path, number: usize, log: &Path, interrupt: &Interrupt) -> Result<(), Trouble> {
    let folder = archive.with_extension("d");
    fs::create_dir_all(&folder).at(&folder)?;
    let write = |name: &str, text: &str| {
        let path = folder.join(name);
        fs::write(&path, text).at(&path)
    };
    write("release", &format!("release {number}\n"))?;
    let tar = |arguments: &[&str], out: &Path| -> Result<(), Trouble> {
        let mut command = Command::new("tar");
        command.arg("-C").arg(&folder).arg("-cf").arg(out).args(arguments);
        interrupt.run(&mut command, log).map(drop)
    };
    tar(&["release"], &folder.join("layer.tar"))?;
    let sum = interrupt.run(Command::new("sha256sum").arg(folder.join("layer.tar")), log)?;
    let digest = sum.split_whitespace().next().unwrap_or_default();
    write(
        "config.json",
        &format!(
            "{{\"architecture\":\"amd64\",\"os\":\"linux\",\"config\":{{}},\
             \"rootfs\":{{\"type\":\"layers\",\"diff_ids\":[\"sha256:{digest}\"]}}}}"
        ),
    )?;
    write("manifest.json", "[{\"Config\":\"config.json\",\"RepoTags\":null,\"Layers\":[\"layer.tar\"]}]")?;
    File::create(archive).at(archive)?;
    tar(&["manifest.json", "config.json", "layer.tar"], archive)
}
