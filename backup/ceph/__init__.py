"""Ceph: the only room that imports rados and rbd."""
