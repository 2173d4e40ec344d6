"""Settings of virt-rbd-backup: edit here, or name a file of your own with --config FILE.

A file of your own holds only the constants that differ; it may be readable by its owner alone.
`main.py check` reports whether the settings work.
"""

# --- Where the domains and their images are -----------------------------------------------------

# libvirt's connection URI, or a list of them, such as ["qemu+ssh://root@node1/system", ...] on a central
# backup host. A domain that several of them define is saved once, by the one on which it runs.
LIBVIRT_URI = "qemu:///system"

# Seconds that one libvirt call may take before it counts as failed. libvirt answers within milliseconds or
# not at all. The time that a guest agent gets (a third of FREEZE_TIMEOUT) is added.
LIBVIRT_TIMEOUT = 60

# Ceph's configuration file: monitors and keyring, for whatever a domain's own XML does not name.
CEPH_CONF = "/etc/ceph/ceph.conf"

# The cephx user that `restore` and `drill` create images as. Its keyring is the one that CEPH_CONF names.
# Backups do not use it: they read each image as its domain's own user.
CEPH_USER = "admin"

# Seconds that one Ceph operation may take before it counts as failed. Ceph itself waits forever. Raise it
# for clusters that stall for longer during recovery.
CEPH_TIMEOUT = 60

# Seconds that the cluster may not answer while no guest is frozen or paused: an operation that timed out
# (CEPH_TIMEOUT) is retried for so long, then the domain's backup fails. 0: no retry. Raise it for clusters
# that do not answer for longer, for instance during maintenance.
CEPH_STALL_TIMEOUT = 900

# --- What is backed up --------------------------------------------------------------------------

# Glob patterns for domain names or UUIDs; a domain is backed up when one of INCLUDE_DOMAINS
# matches and none of EXCLUDE_DOMAINS does.
INCLUDE_DOMAINS = ["*"]
EXCLUDE_DOMAINS = []

# Glob patterns for images ("pool/name", "pool/namespace/name") that are skipped. The restore point then
# holds the domain without those disks; its manifest lists them.
EXCLUDE_IMAGES = []

# What to do about a disk that is not an RBD image (a file, an LVM volume). "report": the domain is saved
# without it, and `list`, the log and the manifest report it. "fail": the domain's backup fails unless its
# metadata excludes the disk. An RBD image that cannot be saved always fails its domain.
UNCOVERED_DISKS = "report"

# Seconds since a domain was last saved, by any node, within which it is not saved again; 0: always save.
# Set it to a little less than the timer's interval where a cluster manager defines the same domain on
# several nodes. Domains named on the command line are always saved.
MIN_AGE = 0

# Number of domains that are backed up at the same time, the largest first. Each costs one core in restic
# and up to 300 MB of memory.
WORKERS = 3

# --- Consistency of a running domain ------------------------------------------------------------

# "auto": freeze the guest's file systems where a guest agent answers, otherwise see WITHOUT_FREEZE.
# "required": without a freeze the backup of a running domain fails.
# "never": do not ask the agent.
FREEZE = "auto"

# What to do with a running domain that cannot be frozen. "pause": pause its processors while the snapshots
# are made (all disks are of one instant, as after a power cut). "crash": snapshot the disks while it runs
# (each disk is of its own instant; a database that spans disks may not survive that).
WITHOUT_FREEZE = "pause"

# Maximum time in seconds that a guest stays frozen or paused. If its snapshots are not complete by then, it
# is thawed and its backup fails.
FREEZE_TIMEOUT = 30

# --- Load ---------------------------------------------------------------------------------------

# Maximum bytes per second that are read from each image; 0: no limit.
MAX_READ_RATE = 0

# Which OSDs are read from. "": each object's primary OSD, as guests do (or what the cluster's configuration
# file names). "balance": any replica, which spreads the load. "localize": the nearest replica, for nodes
# whose crush_location the configuration file names.
REPLICA_READS = ""

# Number of snapshots that are deleted at the same time, by all workers together. Each deletion makes the
# OSDs free the space of what guests have overwritten meanwhile, which is work for them.
SNAPSHOT_DELETES = 2

# --- Where backups go ---------------------------------------------------------------------------

# The module of outputs/ that stores backups. "restic": each image is read completely and streamed into
# restic, which stores what is new. "restic_incremental": only what has changed since the previous backup is
# read; each image keeps a base snapshot until the next backup, and the node needs /dev/fuse and the package
# python3-pyfuse3. Both can share a repository, and you can change from one to the other at any time; see
# res/docs/incremental.md.
OUTPUT = "restic"

# For "restic_incremental": days after which an image gets a full read again, whatever Ceph reports as
# changed; 0: never. Each run also compares a random sample of the unchanged data.
FULL_READ_DAYS = 30

# For "restic_incremental". True: take the list of changes from the images' object maps (feature fast-diff)
# where these are valid, which takes an instant for any size. Ceph's fast-diff has had errors (trackers
# 42248, 53784, 53885, 61616): use it only with a librbd in which these are fixed. False: ask the OSDs for
# each object, about 20 s per TiB.
FAST_DIFF = False

# The restic program, 0.14 or newer: a name on PATH, or a path.
RESTIC_BINARY = "restic"

# The repository, as restic's own RESTIC_REPOSITORY takes it: a path, "sftp:...", "s3:...".
RESTIC_REPOSITORY = ""

# File with the repository's password, readable by its owner alone. "" if RESTIC_ENVIRONMENT gives the
# password in another way that restic knows (RESTIC_PASSWORD_COMMAND, RESTIC_PASSWORD).
RESTIC_PASSWORD_FILE = "/etc/virt-rbd-backup/restic-password"

# Further environment variables for restic, such as the storage provider's access keys.
RESTIC_ENVIRONMENT = {}

# Further options for every restic call, such as ["--limit-upload=50000", "--no-cache"].
RESTIC_OPTIONS = []

# Seconds without progress after which the output counts as stalled and the domain's backup fails: it accepts
# no bytes, or does not finish after the last one. restic itself retries its storage for 15 minutes.
OUTPUT_STALL_TIMEOUT = 1200

# Seconds to wait for another program that has locked the repository exclusively, such as `restic prune`; then
# the domain's backup fails. The guests run meanwhile, their snapshots remain.
LOCK_WAIT = 3600

# Seconds for which a domain that failed with an error that may be transient (a broken connection, a timeout,
# a stall, a lock) is retried at the end of the run: at once, then after growing pauses, for the last time
# when these seconds are over. 0: one retry, at once.
RETRY_FOR = 300

# --- Verification and restore drills ------------------------------------------------------------

# The pool, or pool/namespace, that `main.py drill` restores a domain into while the drill lasts. It needs
# room for the largest domain. CEPH_USER creates the images; for --boot the domain's own user needs access.
DRILL_POOL = ""

# Seconds that `main.py drill --boot` waits for the guest agent of the domain that it boots.
DRILL_BOOT_TIMEOUT = 300

# --- State on this node -------------------------------------------------------------------------

# Directory (mode 0700) with the run's lock and the records of which guests are frozen or paused. It must not
# survive a reboot, as a frozen guest does not either.
RUNTIME_DIR = "/run/virt-rbd-backup"

# Directory for what has to survive a reboot: when each domain was last saved, verified and drilled, and the
# reports of past runs.
STATE_DIR = "/var/lib/virt-rbd-backup"

# Seconds after which a dead node's lock on a domain expires. A live node renews it three times within them.
LOCK_DURATION = 120

# Days for which the reports of past runs are kept in STATE_DIR, for `main.py report`.
REPORT_DAYS = 35

# File that each run's report is written to, as JSON, whatever the result; "": none.
REPORT_FILE = ""

# File with metrics of each domain and of the last run, for the textfile collector of Prometheus'
# node_exporter, such as "/var/lib/prometheus/node-exporter/virt-rbd-backup.prom"; "": none. Needs
# python3-prometheus-client.
METRICS_FILE = ""

# Seconds between two progress lines of a job, in the journal and on terminals that cannot show the live view;
# 0: none.
PROGRESS_INTERVAL = 60

# --- Notifications and hooks --------------------------------------------------------------------

# A program that gets each run's report, as JSON, on its standard input when the run ends: a list of its path
# and its arguments, such as ["/opt/virt-rbd-backup/res/notify-mail", "root"]; []: none.
NOTIFY_COMMAND = []

# When to run NOTIFY_COMMAND: "always"; "failure": when the exit code is not 0; "change": when something fails
# that did not fail the last time, or works again.
NOTIFY_ON = "failure"

# Seconds after which NOTIFY_COMMAND is terminated.
NOTIFY_TIMEOUT = 60

# A URL that is requested when a run ends: as it is when all went well, with "/fail" appended otherwise, as
# healthchecks.io and similar services expect; "": none. It is a secret and is never logged.
PING_URL = ""

# Directory with programs to run, in before-run.d, before-freeze.d, after-thaw.d, after-job.d and after-run.d.
# They run as root; see res/docs/hooks.md. "": none.
HOOKS = ""

# Seconds that each hook may take before it is terminated and counts as failed.
HOOK_TIMEOUT = 60
