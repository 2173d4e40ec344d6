"""The defaults of virt-rbd-backup. Do not edit an installed copy: write what differs into a file of your own.

That is /etc/virt-rbd-backup/config.py, or one that --config names; a group of domains has another (--group).
It holds only the constants that differ. Other users must not be able to write it.
`virt-rbd-backup check` checks that the settings fit together. res/docs/configuration.md lists all constants.
"""

# --- Sources: libvirt and Ceph ------------------------------------------------------------------

# libvirt's connection URI, or a list of URIs, such as ["qemu+ssh://root@node1/system", ...] on a separate
# backup host. A domain that several of them define is backed up once, where it runs.
LIBVIRT_URI = "qemu:///system"

# Maximum time in seconds for one libvirt call. libvirt usually answers in milliseconds, or hangs. Guest agent
# calls get a third of FREEZE_TIMEOUT on top. Raise it if libvirt on a busy node is slower.
LIBVIRT_TIMEOUT = 60

# Ceph's configuration file. It supplies the monitors and the keyring if a domain's XML does not name them.
CEPH_CONF = "/etc/ceph/ceph.conf"

# The cephx user that creates images in `restore` and `drill`, and searches pools for leftovers; CEPH_CONF has
# to lead to its keyring. Backups read each image as the user in the domain's XML.
CEPH_USER = "admin"

# Maximum time in seconds for one Ceph operation (Ceph's own default is to wait forever). Raise it if the
# cluster blocks single operations for longer, for instance during recovery.
CEPH_TIMEOUT = 60

# Time in seconds for which Ceph operations that time out (CEPH_TIMEOUT) are retried, except while snapshots
# are created; then the domain's backup fails. 0: no retries. Raise it if the cluster is unreachable for
# longer, for instance during maintenance.
CEPH_STALL_TIMEOUT = 900

# --- Selection: what is backed up ---------------------------------------------------------------

# Glob patterns for the names or UUIDs of domains to back up.
INCLUDE_DOMAINS = ["*"]

# Glob patterns for the names or UUIDs of domains to skip, even if INCLUDE_DOMAINS matches them.
EXCLUDE_DOMAINS = []

# Glob patterns for images ("pool/name", "pool/namespace/name") to skip. A restore point then contains the
# domain without these disks, and lists them as skipped.
EXCLUDE_IMAGES = []

# What to do about data that is not on an RBD image: disks (such as a file or an LVM volume), shared
# directories, devices of the node, persistent and shared memory. "report": back up the domain without it, and
# report it in the list, the log and the manifest. "fail": fail the domain's backup unless its metadata
# excludes the disk or device. An RBD image that cannot be backed up always fails its domain.
UNCOVERED_DISKS = "report"

# Minimum age in seconds of a domain's last restore point, from any node, before the domain is backed up
# again; one that a wrong clock dated into the future does not count. 0: always back up. Set it slightly below
# the timer's interval if a cluster manager defines the same domain on several nodes. Domains named on the
# command line are always backed up.
MIN_AGE = 0

# Maximum size in bytes of each file that is saved with a domain's definition because the domain boots from
# it or needs it: kernel, initrd, device tree, firmware, ACPI tables, ROMs. Larger ones are reported as not
# backed up, like a disk that is not on an RBD image. Workers hold these files in memory. 0: save none.
MAX_FILE_SIZE = 134217728

# Number of domains that are backed up at the same time. Each uses about one core in restic and up to 300 MB
# of memory; STREAMS limits how many of their images are read. Raise it if the node and the network have
# capacity left during a run.
WORKERS = 3

# Number of images that are read at the same time: by all domains of a run together, so that the disks of
# one are read side by side (not with OUTPUT = "restic_incremental"); and in each `restore`, `verify` and
# `drill`. 0: as many as WORKERS. Each uses about one core in restic and up to 300 MB of memory. Raise it
# for domains with many disks if the node has cores to spare.
STREAMS = 0

# --- Consistency: how a running domain is quiesced for its snapshots ------------------------------

# "auto": freeze the guest's file systems if its agent answers, otherwise see WITHOUT_FREEZE.
# "required": fail the backup of a running domain that cannot be frozen.
# "never": do not use the guest agent.
FREEZE = "auto"

# What to do with a running domain that is not frozen.
# "pause": pause its processors for its snapshots; all disks show the same instant, as after a power cut.
# "crash": do not pause; each disk shows its own instant, so data that spans disks may be inconsistent.
WITHOUT_FREEZE = "pause"

# Maximum time in seconds that a guest stays frozen or paused. If its snapshots are not complete by then, it
# is thawed or resumed and its backup fails. Lower it for guests that do not tolerate such a pause.
FREEZE_TIMEOUT = 30

# Time in seconds after a domain's start for which its backup waits for its guest agent, unless FREEZE is
# "never". Such domains come last in a run. 0: do not wait. Raise it if guests boot more slowly, for instance
# when all of a node's guests start at once after a power cut. The start is known only of domains of this
# node, and to root: others are not waited for.
AGENT_BOOT_TIMEOUT = 300

# --- Load on the cluster ------------------------------------------------------------------------

# Maximum read rate per image in bytes per second. 0: no limit. Set it if backups slow down guests. Limits
# that an image or its pool has for guests (rbd_qos_*) do not hold for backups and restores.
MAX_READ_RATE = 0

# The OSDs to read from. "": the primary of each object, as guests do (or what Ceph's configuration file
# sets). "balance": any replica, which spreads the load. "localize": the nearest replica, which needs a
# crush_location in Ceph's configuration file.
REPLICA_READS = ""

# Number of snapshots that all workers together delete at the same time. Each deletion makes the OSDs free
# the space that guests have overwritten since the snapshot. Lower it if that slows down guests.
SNAPSHOT_DELETES = 2

# --- Output: where backups go -------------------------------------------------------------------

# The module of outputs/ that stores backups. "restic": read each image completely and stream it into restic,
# which stores only new data. "restic_incremental": read only what changed since the previous backup. For
# that, each image keeps one snapshot between runs, and the node needs /dev/fuse and python3-pyfuse3. Both can
# use the same repository, and can be switched at any time; see res/docs/incremental.md. "rbd": write only
# what changed into images of a second pool, namespace or cluster, from which a domain starts within seconds;
# see res/docs/rbd-output.md. "directory": files in a directory, local, NFS or CephFS, which QEMU alone opens;
# see res/docs/directory-output.md.
OUTPUT = "restic"

# Not for "restic": days after which an image gets a full read again. 0: never. (Every run also compares a
# random sample of the data that has not changed.)
FULL_READ_DAYS = 30

# Not for "restic": how changes are listed. False: object by object, about 20 s per TiB of those
# that exist. True: from the images' object maps (feature fast-diff) where Ceph considers them valid, which is
# instant. Ceph has had bugs there (trackers 42248, 53784, 53885, 61616): use it only with a librbd in which
# these are fixed.
FAST_DIFF = False

# The restic program, 0.14 or newer: a name in PATH, or a path.
RESTIC_BINARY = "restic"

# The repository, in the form of restic's own RESTIC_REPOSITORY: a path, "sftp:...", "s3:...".
RESTIC_REPOSITORY = ""

# A file with the repository's password, readable by its owner only. "": RESTIC_ENVIRONMENT supplies the
# password in one of restic's other ways (RESTIC_PASSWORD_COMMAND, RESTIC_PASSWORD).
RESTIC_PASSWORD_FILE = "/etc/virt-rbd-backup/restic-password"

# Additional environment variables for restic, such as the access keys of its back end.
RESTIC_ENVIRONMENT = {}

# Additional options for every restic call, such as ["--limit-upload=50000", "--no-cache"].
RESTIC_OPTIONS = []

# Only for "restic_incremental": number of files that restic reads at the same time for each domain, each with
# about one core and up to 32 MB of memory of the worker. 0: restic's own default, 2. Needs restic 0.15: older
# ones read two. Raise it if the node has cores to spare.
RESTIC_READ_CONCURRENCY = 0

# Only for "restic" and "restic_incremental": a second repository, to which `virt-rbd-backup copy` copies
# whole restore points, in the form of RESTIC_REPOSITORY. "": none. virt-rbd-backup-copy.service does that
# after each run. Set it on one node of those that share the first repository.
COPY_REPOSITORY = ""

# A file with the second repository's password. "": the same password as the first one's, unless
# COPY_ENVIRONMENT supplies another one.
COPY_PASSWORD_FILE = ""

# Environment variables for restic on the second repository, in addition to those in RESTIC_ENVIRONMENT; one
# with the same name replaces that.
COPY_ENVIRONMENT = {}

# Only for "rbd": Ceph's configuration file of the cluster that gets the backups, which has to lead to the
# keyring of RBD_OUTPUT_USER. "": CEPH_CONF, for a second pool or namespace of the same cluster.
RBD_OUTPUT_CONF = ""

# Only for "rbd": the cephx user that writes the backups. "": CEPH_USER.
RBD_OUTPUT_USER = ""

# Only for "rbd": the pool, or "pool/namespace", that gets the backups. Guests should have no access to it.
RBD_OUTPUT_POOL = ""

# Only for "rbd": maximum write rate per image in bytes per second. 0: no limit. Set it if backups slow down
# what else uses the cluster that gets them, or the link to it.
MAX_WRITE_RATE = 0

# Only for "directory": the directory that gets the backups; it has to exist. On a mounted file system, name a
# directory in it: then a backup fails, instead of filling the node's own disk, if that is not mounted.
DIRECTORY_OUTPUT = ""

# Only for "directory": the format of the files. "qcow2": each backup saves what has changed, into a file that
# builds on those of earlier ones. "raw": each backup saves a complete, sparse file.
DIRECTORY_FORMAT = "qcow2"

# Only for "directory" with "qcow2": how many files of a disk at the most build on one that is complete by
# itself; then another complete one is written. 0: each is complete. Lower it if a damaged file must not cost
# many restore points; raise it if the space for several complete ones is lacking.
DIRECTORY_CHAIN = 14

# Only for "rbd" and "directory": how many restore points of each domain to keep, the newest ones; older
# ones are removed at the end of a run and by `virt-rbd-backup prune`, unless KEEP_WITHIN_DAYS keeps them.
# 0: no limit. The newest complete one is never removed.
KEEP_LAST = 0

# Only for "rbd" and "directory": age in days up to which restore points are kept; older ones are removed,
# unless KEEP_LAST keeps them. 0: no limit. With both 0 none is ever removed, and the destination fills up.
KEEP_WITHIN_DAYS = 0

# Maximum time in seconds that the output may make no progress (no byte accepted, or no exit after the last
# one); then the domain's backup fails. restic itself retries its back end for 15 minutes: keep it above that.
OUTPUT_STALL_TIMEOUT = 1200

# Maximum time in seconds to wait while another program, such as `restic prune`, has locked the repository;
# then the domain's backup fails. Guests run on meanwhile, and the snapshots stay. Raise it for long prunes.
LOCK_WAIT = 3600

# Time in seconds for which what failed with a transient error (a broken connection, a timeout, a stall, a
# lock) is retried: the list of the repository at the beginning, and domains at the end of a run. At once,
# then after growing pauses, last at the end of this time. 0: one retry, at once.
# `restore`, `verify` and `drill` retry that list for a minute at the most, unless a timer started them.
RETRY_FOR = 900

# --- Verification and restore drills ------------------------------------------------------------

# The pool, or pool/namespace, into which `virt-rbd-backup drill` restores a domain temporarily. It needs
# space for the largest domain. CEPH_USER creates the images; for --boot the domain's own user needs access
# as well. "": `virt-rbd-backup drill --boot`, which the timer runs, boots the domain out of the repository,
# as --instant does.
DRILL_POOL = ""

# Maximum time in seconds that `virt-rbd-backup drill --boot` (or --instant) waits for the guest agent of
# the domain that it boots. Raise it for guests that boot slowly.
DRILL_BOOT_TIMEOUT = 300

# Directory for what a guest writes while `virt-rbd-backup drill --instant` runs it; removed afterwards. 2
# GiB have to be free, and QEMU's user needs to reach it: no directory above it may be closed to others. The
# socket of `virt-rbd-backup restore --instant` is there, too.
DRILL_DIR = "/var/lib/libvirt/images"

# --- State and reports on this node -------------------------------------------------------------

# Directory (mode 0700) for the lock of the active run and the records of frozen guests. It must not survive
# a reboot, as a guest does not stay frozen across one either. All groups of a node need the same one, and
# each has its own directory in it (groups/NAME): so no two freeze a domain at the same time.
RUNTIME_DIR = "/run/virt-rbd-backup"

# Directory for state that survives a reboot: the reports of past runs, when each domain was last backed up,
# verified and drilled, manifests for the next incremental backups, records of the files that a restore or
# drill is writing to this node, and the restore points that were last listed, for completions.
# A group whose file does not set it uses groups/NAME in the default one.
STATE_DIR = "/var/lib/virt-rbd-backup"

# Time in seconds after which the lock on a domain expires if its node died. The lock is renewed three times
# within this time. Raise it if the cluster often stalls for about that long.
LOCK_DURATION = 120

# Pools ("pool" or "pool/namespace") in which `virt-rbd-backup cleanup` and `virt-rbd-backup check` search
# for leftovers, as CEPH_USER: besides those of the node's domains and of the restore points, which are
# always searched.
CLEANUP_POOLS = []

# Age in days from which `virt-rbd-backup cleanup` removes a base snapshot whose domain this node does not
# have, unless another client has its image open. A younger one may be of another node, which replaces it
# with each backup. Losing one costs a full read. 0: never. Raise it if backups are further apart than that.
CLEANUP_DAYS = 30

# Number of days for which the reports of past runs are kept in STATE_DIR, for `virt-rbd-backup report`.
REPORT_DAYS = 35

# File to which each run writes its report as JSON, whatever its result. "": none.
REPORT_FILE = ""

# File for Prometheus (node_exporter's textfile collector) with the state of the domains and of the last
# run, such as "/var/lib/prometheus/node-exporter/virt-rbd-backup.prom". "": none. The path is absolute and
# ends in ".prom". Needs python3-prometheus-client. Each group needs a file of its own, beside the others.
METRICS_FILE = ""

# Seconds between two progress messages of a job, in the journal and on terminals without the live view.
# 0: none.
PROGRESS_INTERVAL = 60

# --- Notifications and hooks --------------------------------------------------------------------

# A program that receives each run's report as JSON on its standard input, also if a timer's run cannot begin:
# a list of its path and its arguments, such as ["/opt/virt-rbd-backup/res/notify-mail", "root"]. []: none.
NOTIFY_COMMAND = []

# When NOTIFY_COMMAND runs. "always": after each run. "failure": if the exit code is not 0. "change": if
# something fails that did not fail in the previous run, or works again.
NOTIFY_ON = "failure"

# Maximum time in seconds for NOTIFY_COMMAND, which is then ended.
NOTIFY_TIMEOUT = 60

# A URL that is requested at the end of each run, for monitoring services such as healthchecks.io: as it is if
# all went well, otherwise with "/fail" appended. "": none. It is treated as a secret and never shown.
PING_URL = ""

# Directory with the subdirectories before-run.d, before-freeze.d, after-thaw.d, after-job.d and after-run.d,
# whose programs run at these steps, as the service's user (usually root); see res/docs/hooks.md. "": none.
HOOKS = ""

# Maximum time in seconds for each hook, which is then ended and counts as failed.
HOOK_TIMEOUT = 60
