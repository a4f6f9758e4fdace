//! `package` and `unpack`: a bundle as an OCI image layout, and back.

use camino::Utf8PathBuf;
use clap::Args;
use serde_json::json;

use super::args::{BundleArgs, OutputArgs};
use super::failure::{Exit, Failure};
use super::printer::Printer;
use crate::bundle::Bundle;
use crate::bundle::oci::{self, PackedModel};

#[derive(Debug, Args)]
#[command(mut_arg("output", |a| a.help("Folder of the OCI image layout")))]
pub(crate) struct PackageArgs {
    #[command(flatten)]
    bundle: BundleArgs,
    /// As an OCI image layout, in the form of the CNCF ModelPack: one raw layer a file
    #[arg(long, required = true)]
    oci: bool,
    /// Tag of the model in the layout
    #[arg(long, value_name = "TAG", default_value = "latest")]
    tag: String,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
#[command(mut_arg("output", |a| a.help("Folder of the bundle")))]
pub(crate) struct UnpackArgs {
    /// OCI image layout, as `package` writes it and `skopeo copy docker://… oci:LAYOUT:TAG` brings it
    layout: Utf8PathBuf,
    /// Which model, by its tag [default: the only one]
    #[arg(long, value_name = "TAG")]
    tag: Option<String>,
    #[command(flatten)]
    output: OutputArgs,
}

impl PackageArgs {
    /// Nothing is to be decided: there is one form.
    pub(super) fn resolve(self) -> Result<Self, Failure> {
        Ok(self)
    }
}

impl UnpackArgs {
    /// Nothing is to be decided.
    pub(super) fn resolve(self) -> Result<Self, Failure> {
        Ok(self)
    }
}

pub(super) fn run(args: PackageArgs, printer: Printer) -> Result<Exit, Failure> {
    let PackageArgs { bundle: BundleArgs { bundle: folder }, oci: _, tag, output } = args;
    let bundle = Bundle::open(&folder)?;
    let bar = printer.progress("packing", "files");
    let packed = oci::pack(&bundle, &tag, &output.output, output.replace.force, &mut |file| bar.step(file))?;
    drop(bar);
    say(&packed, &output, printer)
}

pub(super) fn unpack(args: UnpackArgs, printer: Printer) -> Result<Exit, Failure> {
    let UnpackArgs { layout, tag, output } = args;
    let bar = printer.progress("unpacking", "files");
    let force = output.replace.force;
    let packed = oci::unpack(&layout, tag.as_deref(), &output.output, force, &mut |file| bar.step(file))?;
    drop(bar);
    say(&packed, &output, printer)
}

fn say(packed: &PackedModel, output: &OutputArgs, printer: Printer) -> Result<Exit, Failure> {
    let (output, PackedModel { digest, layers, bytes }) = (&output.output, packed);
    let text = || format!("{output}: {layers} files, {:.1} MB, {digest}", *bytes as f64 / 1e6);
    printer.document(text, json!({ "output": output, "digest": digest, "files": layers, "bytes": bytes }))?;
    Ok(Exit::Pass)
}
