//! `cargo xtask ptx`: builds what the CUDA backend embeds from `ptx/*.cu`, with pinned compilers.
//!
//! Each `NAME.cu` gives `NAME.ptx` (PTX as text, at the lowest version that it assembles with) and
//! `NAME.fatbin` (the same PTX, and machine code for every architecture, so that nobody waits for
//! a driver to compile). With `--check` nothing is written: the committed PTX must be what the
//! source gives, byte for byte, and assemble for every architecture; `--check-all` compares the
//! machine code and the record of registers too, in twice the time. Not
//! needed to build the product.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// The compilers: wheels of the Python package index, with nvcc, ptxas and fatbinary in them. All
/// are pinned, because a newer sibling makes nvcc write PTX that the pinned driver refuses.
const WHEELS: [&str; 5] = [
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-cuda-cccl==13.0.85",
];

/// The oldest assembler whose driver branch (525, CUDA 12.0) the backend accepts.
const WHEEL_OLD: &str = "nvidia-cuda-nvcc-cu12==12.0.140";

/// Architectures of the machine code that ships.
const ARCHITECTURES: [&str; 4] = ["80", "86", "89", "90a"];

/// The version that nvcc writes, and those that are tried in its place: the first is what drivers
/// from CUDA 12.0 on read.
const PTX_WRITTEN: &str = ".version 9.0";
const PTX_LOWERED: [&str; 4] = [".version 8.0", ".version 8.1", ".version 8.3", ".version 8.6"];

/// What the names of functions begin with that differ from checkout to checkout.
const PTX_UNSTABLE: [&str; 2] = ["_INTERNAL_", "_GLOBAL__N_"];

/// A hint to the assembler that older versions do not know, a line of its own.
const PTX_HINT: &str = ".pragma \"used_bytes_mask";

/// Where the registers and spills of every kernel are recorded.
const RESOURCES: &str = "resources.txt";

/// Runs the task: `ptx [--check] [NAME…]`.
#[must_use]
pub fn run(root: &Path, arguments: &[String]) -> ExitCode {
    let flag = |name: &str| arguments.iter().any(|argument| argument == name);
    let mode = match (flag("--check"), flag("--check-all")) {
        (_, true) => Mode::CheckAll,
        (true, false) => Mode::Check,
        (false, false) => Mode::Write,
    };
    let names: Vec<&str> =
        arguments.iter().map(String::as_str).filter(|a| !a.starts_with("--")).collect();
    match build_all(root, &names, mode) {
        Ok(report) => {
            println!("{report}");
            ExitCode::SUCCESS
        }
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

/// The stems of all sources, sorted.
///
/// # Errors
/// When the folder cannot be read.
pub fn sources(root: &Path) -> Result<Vec<String>, String> {
    let folder = root.join("ptx");
    let entries = fs::read_dir(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter_map(|name| name.strip_suffix(".cu").map(str::to_owned))
        .collect();
    names.sort();
    Ok(names)
}

/// The line of a built `.ptx` that says which source it was built from.
///
/// # Errors
/// When a file cannot be read.
pub fn source_line(root: &Path, name: &str) -> Result<String, String> {
    let mut seen = Vec::new();
    let mut text = String::new();
    gather(&root.join("ptx"), &format!("{name}.cu"), &mut seen, &mut text)?;
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    Ok(format!("// built by `cargo xtask ptx` from {name}.cu, source hash {hash:016x}"))
}

/// A source and the headers beside it that it includes, each once.
fn gather(
    folder: &Path,
    file: &str,
    seen: &mut Vec<String>,
    text: &mut String,
) -> Result<(), String> {
    if seen.iter().any(|known| known == file) {
        return Ok(());
    }
    seen.push(file.to_owned());
    let path = folder.join(file);
    let source = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    // A checkout may have other line ends.
    let source = source.replace('\r', "");
    for line in source.lines() {
        let included = line.trim().strip_prefix("#include \"").and_then(|l| l.strip_suffix('"'));
        if let Some(included) = included {
            gather(folder, included, seen, text)?;
        }
    }
    text.push_str(&source);
    Ok(())
}

/// What is done with what the sources give.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Write,
    Check,
    CheckAll,
}

fn build_all(root: &Path, names: &[&str], mode: Mode) -> Result<String, String> {
    let tools = Tools::find(root)?;
    let all = sources(root)?;
    if let Some(unknown) = names.iter().find(|name| !all.iter().any(|known| known == *name)) {
        return Err(format!("no source ptx/{unknown}.cu"));
    }
    let wanted: Vec<&String> =
        all.iter().filter(|name| names.is_empty() || names.contains(&name.as_str())).collect();
    // One compiler at a time uses one core; two threads share the list.
    let next = std::sync::atomic::AtomicUsize::new(0);
    let built = std::sync::Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(8);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(name) =
                    wanted.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
                {
                    let result = build(root, &tools, name, mode);
                    let mut built = built.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    built.push(((*name).clone(), result));
                }
            });
        }
    });
    let built = built.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut outputs = BTreeMap::new();
    for (name, result) in built {
        outputs.insert(name, result?);
    }
    match mode {
        Mode::Write => write(root, outputs),
        Mode::Check | Mode::CheckAll => compare(root, &outputs, &all),
    }
}

/// What a source gives.
struct Built {
    ptx: String,
    machine: Option<Machine>,
}

/// The part that `--check` leaves out.
struct Machine {
    fatbin: Vec<u8>,
    /// One line a kernel and architecture.
    resources: String,
}

fn build(root: &Path, tools: &Tools, name: &str, mode: Mode) -> Result<Built, String> {
    let folder = root.join("target").join("ptx").join(name);
    fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let source = root.join("ptx").join(format!("{name}.cu"));
    let hopper = name.ends_with("_hopper");
    let architectures: &[&str] = if hopper { &["90a"] } else { &ARCHITECTURES };
    let base = if hopper { "90a" } else { "80" };
    let path = folder.join(format!("{name}.ptx"));
    tools.nvcc(&["-ptx", &format!("-arch=compute_{base}")], &source, &path)?;
    let written = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let ptx = format!("{}\n{}", source_line(root, name)?, tools.lower(&written, &path, base)?);
    fs::write(&path, &ptx).map_err(|e| format!("{}: {e}", path.display()))?;
    if mode == Mode::Check {
        // For the architecture that it was written for it has just been assembled.
        for architecture in architectures.iter().filter(|&&a| a != base) {
            tools.assemble(&path, architecture)?;
        }
        return Ok(Built { ptx, machine: None });
    }
    let mut resources = String::new();
    let mut images = Vec::new();
    for architecture in architectures {
        let cubin = folder.join(format!("{name}.sm_{architecture}.cubin"));
        let target = format!("arch=compute_{architecture},code=sm_{architecture}");
        let log = tools.nvcc(&["-cubin", "-gencode", &target, "-Xptxas", "-v"], &source, &cubin)?;
        append_resources(&mut resources, name, architecture, &log);
        images.push((*architecture, cubin));
    }
    let fatbin = folder.join(format!("{name}.fatbin"));
    tools.bundle(&fatbin, &images, &path, base)?;
    let fatbin = fs::read(&fatbin).map_err(|e| format!("{}: {e}", fatbin.display()))?;
    Ok(Built { ptx, machine: Some(Machine { fatbin, resources }) })
}

/// Registers and spills out of the assembler's report: what a kernel may use and what it loses.
fn append_resources(into: &mut String, name: &str, architecture: &str, log: &str) {
    let mut kernel = "";
    let mut spills = "";
    for line in log.lines() {
        if let Some(rest) = line.split("Compiling entry function '").nth(1) {
            kernel = rest.split('\'').next().unwrap_or_default();
        } else if line.contains("bytes stack frame") {
            spills = line.trim();
        } else if let Some(used) = line.split("Used ").nth(1) {
            let registers = used.split(" registers").next().unwrap_or_default();
            let stored = spills.split(", ").nth(1).unwrap_or("0 bytes spill stores");
            let stored = stored.split(' ').next().unwrap_or("0");
            // Writing into a string cannot fail.
            let _ = writeln!(
                into,
                "{name} sm_{architecture} {kernel}: {registers} registers, {stored} bytes spilled"
            );
        }
    }
}

fn write(root: &Path, outputs: BTreeMap<String, Built>) -> Result<String, String> {
    let folder = root.join("ptx");
    let put = |file: &str, bytes: &[u8]| {
        let path = folder.join(file);
        fs::write(&path, bytes).map_err(|e| format!("{}: {e}", path.display()))
    };
    let mut report = String::new();
    let mut recorded = recorded(root);
    for (name, built) in outputs {
        put(&format!("{name}.ptx"), built.ptx.as_bytes())?;
        let Some(Machine { fatbin, resources }) = built.machine else { continue };
        put(&format!("{name}.fatbin"), &fatbin)?;
        let _ = writeln!(report, "{name}: fatbin {} KiB", fatbin.len() / 1024);
        report.push_str(&resources);
        recorded.insert(name, resources);
    }
    let known = sources(root)?;
    recorded.retain(|name, _| known.contains(name));
    put(RESOURCES, recorded.into_values().collect::<String>().as_bytes())?;
    Ok(report)
}

/// The recorded resources by source.
fn recorded(root: &Path) -> BTreeMap<String, String> {
    let text = fs::read_to_string(root.join("ptx").join(RESOURCES)).unwrap_or_default();
    let mut by_name: BTreeMap<String, String> = BTreeMap::new();
    for line in text.lines() {
        let name = line.split(' ').next().unwrap_or_default();
        let lines = by_name.entry(name.to_owned()).or_default();
        lines.push_str(line);
        lines.push('\n');
    }
    by_name
}

fn compare(
    root: &Path,
    outputs: &BTreeMap<String, Built>,
    all: &[String],
) -> Result<String, String> {
    let folder = root.join("ptx");
    let mut wrong = Vec::new();
    let recorded = recorded(root);
    for (name, built) in outputs {
        let mut differs = |file: String, bytes: &[u8]| {
            if fs::read(folder.join(&file)).ok().as_deref() != Some(bytes) {
                wrong.push(file);
            }
        };
        differs(format!("{name}.ptx"), built.ptx.as_bytes());
        let Some(Machine { fatbin, resources }) = &built.machine else { continue };
        differs(format!("{name}.fatbin"), fatbin);
        if recorded.get(name) != Some(resources) {
            wrong.push(format!("{RESOURCES} ({name})"));
        }
    }
    if !wrong.is_empty() {
        return Err(format!(
            "not what the sources give: {}; run `cargo xtask ptx` and commit",
            wrong.join(", ")
        ));
    }
    Ok(format!("{} of {} sources give what is committed", outputs.len(), all.len()))
}

/// The compilers' programs.
struct Tools {
    folder: PathBuf,
    old_ptxas: PathBuf,
}

impl Tools {
    /// Finds the compilers under `target/`, or puts them there.
    fn find(root: &Path) -> Result<Tools, String> {
        let home = root.join("target").join("nvcc");
        // Named after what is in it, so that a new pin makes a new folder.
        let stamp = home.join("wheels.txt");
        let wanted = format!("{}\n{WHEEL_OLD}\n", WHEELS.join("\n"));
        if fs::read_to_string(&stamp).ok().as_deref() != Some(wanted.as_str()) {
            install(&home)?;
            fs::write(&stamp, wanted).map_err(|e| format!("{}: {e}", stamp.display()))?;
        }
        let lacking = |what: &str| format!("{what} is not in {}", home.display());
        let folder = find(&home, "nvidia/cu13/bin/nvcc").ok_or_else(|| lacking("nvcc"))?;
        let folder = folder.ancestors().nth(2).unwrap_or(&home).to_path_buf();
        let old = "nvidia/cuda_nvcc/bin/ptxas";
        let old_ptxas = find(&home, old).ok_or_else(|| lacking("the older ptxas"))?;
        Ok(Tools { folder, old_ptxas })
    }

    fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.folder.join("bin").join(name));
        let mut path = vec![self.folder.join("bin")];
        path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
        if let Ok(path) = std::env::join_paths(path) {
            command.env("PATH", path);
        }
        command
    }

    fn nvcc(&self, arguments: &[&str], source: &Path, into: &Path) -> Result<String, String> {
        let mut command = self.program("nvcc");
        command.args(arguments).args(["-O3", "-std=c++17", "-o"]).arg(into).arg(source);
        output(&mut command, &format!("nvcc {}", source.display()))
    }

    /// PTX at the lowest version that its instructions allow, which is what older drivers read.
    fn lower(&self, written: &str, path: &Path, architecture: &str) -> Result<String, String> {
        if !written.contains(PTX_WRITTEN) {
            return Err(format!("{}: expected `{PTX_WRITTEN}`", path.display()));
        }
        // Functions of internal linkage are named after the checkout's path.
        if PTX_UNSTABLE.iter().any(|name| written.contains(name)) {
            let path = path.display();
            return Err(format!("{path}: has `static` or unnamed-namespace functions; name them"));
        }
        let kept = written.split_inclusive('\n').filter(|line| !line.contains(PTX_HINT));
        let kept: String = kept.collect();
        for version in PTX_LOWERED {
            let lowered = kept.replacen(PTX_WRITTEN, version, 1);
            fs::write(path, &lowered).map_err(|e| format!("{}: {e}", path.display()))?;
            // The oldest drivers' own assembler too, which knows the first version alone.
            let mut old = Command::new(&self.old_ptxas);
            old.arg(format!("-arch=sm_{architecture}")).arg("-o").arg("/dev/null").arg(path);
            let first = version == PTX_LOWERED[0];
            if self.assemble(path, architecture).is_ok()
                && (!first || output(&mut old, "the older ptxas").is_ok())
            {
                return Ok(lowered);
            }
        }
        Ok(written.to_owned())
    }

    /// That PTX becomes machine code.
    fn assemble(&self, ptx: &Path, architecture: &str) -> Result<(), String> {
        let mut command = self.program("ptxas");
        command.arg(format!("-arch=sm_{architecture}")).args(["-o", "/dev/null"]).arg(ptx);
        output(&mut command, &format!("ptxas for sm_{architecture}")).map(|_| ())
    }

    fn bundle(
        &self,
        into: &Path,
        images: &[(&str, PathBuf)],
        ptx: &Path,
        base: &str,
    ) -> Result<(), String> {
        let mut command = self.program("fatbinary");
        command.arg(format!("--create={}", into.display())).args(["--64", "--compress-all"]);
        for (architecture, cubin) in images {
            command.arg(format!("--image3=kind=elf,sm={architecture},file={}", cubin.display()));
        }
        command.arg(format!("--image3=kind=ptx,sm={base},file={}", ptx.display()));
        output(&mut command, "fatbinary").map(|_| ())
    }
}

fn install(home: &Path) -> Result<(), String> {
    let fail = |e: std::io::Error| format!("{}: {e}", home.display());
    if home.exists() {
        fs::remove_dir_all(home).map_err(fail)?;
    }
    fs::create_dir_all(home).map_err(fail)?;
    let python = std::env::var_os("PYTHON").unwrap_or_else(|| "python3".into());
    let mut venv = Command::new(python);
    venv.args(["-m", "venv"]).arg(home.join("venv"));
    output(&mut venv, "python3 -m venv (Debian: package python3-venv)")?;
    let pip = home.join("venv").join("bin").join("pip");
    let mut command = Command::new(&pip);
    command.args(["install", "--quiet", "--disable-pip-version-check"]).args(WHEELS);
    output(&mut command, "pip install")?;
    let mut command = Command::new(&pip);
    command.args(["install", "--quiet", "--disable-pip-version-check", "--no-deps", WHEEL_OLD]);
    output(&mut command, "pip install").map(|_| ())
}

/// The first file under `folder` whose path ends so.
fn find(folder: &Path, ending: &str) -> Option<PathBuf> {
    let mut left = vec![folder.to_path_buf()];
    while let Some(folder) = left.pop() {
        for entry in fs::read_dir(folder).ok()?.flatten() {
            let path = entry.path();
            if path.ends_with(ending) {
                return Some(path);
            }
            // `lib64` is a link to `lib`.
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                left.push(path);
            }
        }
    }
    None
}

/// What a command prints, both streams.
fn output(command: &mut Command, what: &str) -> Result<String, String> {
    let output = command.output().map_err(|e| format!("{what}: {e}"))?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    if output.status.success() { Ok(text) } else { Err(format!("{what} failed:\n{text}")) }
}
